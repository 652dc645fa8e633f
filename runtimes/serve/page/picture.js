// A picture from a file, the clipboard, a drop or the camera, and what of it is sent.

const TAKEN = ["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp"]; // as the server reads them
const MOST_BYTES = 10_000_000; // of a file that it takes
const SIDE = 2048; // of what is sent instead of a larger file

/** A picture that is asked about; `id` is its name on the server once it was sent. */
export class Picture {
  constructor(file, name, note) {
    Object.assign(this, { file, name, note, id: null, url: URL.createObjectURL(file) });
  }

  /** The part of a message that stands for it. */
  async part() {
    if (this.id) return { type: "image_id", image_id: this.id };
    return { type: "image_url", image_url: { url: await dataUrl(this.file) } };
  }
}

/** The picture of a file; one that the server does not take is drawn anew, smaller or as JPEG, and says so. */
export async function openPicture(file, name = file.name || "picture") {
  const size = bytes(file.size);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${name} is no picture that this browser can read.`);
  }
  const sides = `${bitmap.width} × ${bitmap.height}`;
  if (TAKEN.includes(file.type) && file.size <= MOST_BYTES) {
    bitmap.close();
    return new Picture(file, name, `${name}, ${sides}, ${size}`);
  }
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const drawn = await draw(bitmap, bitmap.width * scale, bitmap.height * scale);
  bitmap.close();
  return new Picture(drawn, name, `${name}, ${sides}, ${size}; sent as a JPEG of ${bytes(drawn.size)}`);
}

/** What a video shows now. */
export const photograph = async (video) => openPicture(await draw(video, video.videoWidth, video.videoHeight), "photo");

/** The first picture among what was dropped or pasted. */
export const fileOf = (transfer) => [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/")) ?? transfer?.files?.[0];

async function draw(source, width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width));
  canvas.height = Math.max(1, Math.round(height));
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // JPEG has no transparency
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The picture's file cannot be read any more. Choose it again."));
    reader.readAsDataURL(file);
  });
}

const bytes = (count) => (count < 1e6 ? `${Math.max(1, Math.round(count / 1e3))} kB` : `${(count / 1e6).toFixed(1)} MB`);
