// A photo of a camera: a phone's own program, or what getUserMedia shows.

import { $ } from "./elements.js";
import { photograph } from "./picture.js";

/** Have one taken. */
export async function openCamera() {
  const isPhone = matchMedia("(pointer: coarse)").matches; // whose own camera is better
  if (isPhone || !navigator.mediaDevices) return $("shot").click();
  $("camera-problem").textContent = "";
  $("take").disabled = true;
  $("camera").showModal();
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 } } });
    if (!$("camera").open) return stopCamera(stream); // closed meanwhile
    $("video").srcObject = stream;
    await $("video").play();
    $("take").disabled = false;
    $("take").focus();
  } catch (error) {
    $("camera-problem").textContent = `There is no picture of a camera: ${error.message}.`;
  }
}

function stopCamera(stream) {
  stream?.getTracks().forEach((track) => track.stop());
  $("video").srcObject = null;
}

/** What the dialog's buttons do; `taken` is given the promise of the picture. */
export function prepareCamera(taken) {
  $("take").addEventListener("click", () => taken(photograph($("video")).finally(() => $("camera").close())));
  $("camera").addEventListener("close", () => stopCamera($("video").srcObject));
}
