// What the page asks of the service: docs/serving.md. All addresses are relative, for a service behind a proxy's path.

const PATIENCE = 20; // how often a busy service is asked again

// The models that are served, and which is taken unless one is named.
export async function models() {
  return (await asked("models", {})).json();
}

// What noise a file has, and which weights would be taken.
export async function analyse(file, { model, fast }, signal) {
  return (await asked(`analyse?${new URLSearchParams({ model, fast })}`, post(file, signal))).json();
}

// How much structure denoising loses and where: { verdict, lost, map }, the map a Blob or null.
export async function judge(file, { model, fast, job }, signal) {
  const found = await (await asked(`judge?${new URLSearchParams({ model, fast, job })}`, post(file, signal))).json();
  const bytes = found.map && Uint8Array.from(atob(found.map), (letter) => letter.charCodeAt(0));
  return { ...found, map: bytes && new Blob([bytes], { type: "image/png" }) };
}

// A denoised image: { blob, model, why }.
export async function denoise(file, options, signal) {
  const answer = await asked(`denoise?${new URLSearchParams(options)}`, post(file, signal));
  return { blob: await answer.blob(), model: answer.headers.get("Denoise-Model"), why: answer.headers.get("Denoise-Why") };
}

// A job's name. crypto.randomUUID exists on encrypted pages only.
export function randomName() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Tells how far a job is, until it ends; returns a function that stops listening.
export function follow(job, tell) {
  const events = new EventSource(`jobs/${job}`);
  events.onmessage = (event) => {
    const progress = JSON.parse(event.data);
    if (["done", "failed", "cancelled"].includes(progress.state)) events.close();
    else tell(progress);
  };
  events.onerror = () => events.close();
  return () => events.close();
}

// Ends the work of a job.
export function cancel(job) {
  return fetch(`jobs/${job}`, { method: "DELETE" }).catch(() => {});
}

function post(file, signal) {
  return { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" }, signal };
}

// An answer that is no refusal; a busy service is asked again after the seconds that it names.
async function asked(address, request) {
  for (let time = 1; ; time += 1) {
    let answer;
    try {
      answer = await fetch(address, request);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The service does not answer. Is it still running?", { cause: error });
    }
    if (answer.ok) return answer;
    if (answer.status !== 503 || time === PATIENCE) throw new Error(await reasonOf(answer));
    await pause(Number(answer.headers.get("Retry-After")) || 2, request.signal);
  }
}

async function reasonOf(answer) {
  try {
    return (await answer.json()).error;
  } catch {
    return `The service answers ${answer.status}.`;
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("cancelled", "AbortError"));
    }, { once: true });
  });
}
