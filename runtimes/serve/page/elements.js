// Elements of text: nothing here, and nothing on this page, makes HTML of a string.

export const $ = (id) => document.getElementById(id);

/** An element with attributes and children; a child that is a string becomes a text node. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
