// Files in and out: what is dropped, also folders, and what is saved.

const IMAGES = /\.(png|jpe?g|bmp|webp|tiff?|exr|p[bgpn]m|npy)$/i;

// The files of a drop or a paste, [{ file, name }]; of a folder those that look like images, with their path within it.
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => [item.webkitGetAsEntry?.(), item.kind === "file" && item.getAsFile()]);
  const found = [];
  for (const [entry, file] of entries) {
    if (entry?.isDirectory) found.push(...(await within(entry)));
    else if (file) found.push({ file, name: file.name });
  }
  return found;
}

// The files of an <input type="file">.
export function chosen(input) {
  const files = [...input.files].map((file) => ({ file, name: file.webkitRelativePath || file.name }));
  input.value = ""; // so that the same file can be chosen again
  return input.webkitdirectory ? files.filter(({ name }) => IMAGES.test(name)).sort(byName) : files;
}

async function within(folder) {
  const reader = folder.createReader(), found = [];
  for (;;) {
    // Some hundred at a time, until there are none left.
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!entries.length) return found.sort(byName);
    for (const entry of entries) {
      if (entry.isDirectory) found.push(...(await within(entry)));
      else if (IMAGES.test(entry.name)) {
        const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
        found.push({ file, name: entry.fullPath.replace(/^\//, "") });
      }
    }
  }
}

function byName(a, b) {
  return a.name.localeCompare(b.name, undefined, { numeric: true });
}

// photo.jpg becomes photo_denoise.jpg, as predict.py calls it.
export function savedName(name, suffix) {
  return name.replace(/(\.[^./]*)?$/, (own) => `_denoise${suffix ?? own}`);
}

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name.split("/").at(-1);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
