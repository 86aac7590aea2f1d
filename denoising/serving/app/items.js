// The images and their way: each is shown, measured, and denoised; some at a time, in the order in which they came.
import { analyse, cancel, denoise, follow, judge, randomName } from "./api.js";
import { PLAIN } from "./mix.js";

const AT_ONCE = 2; // the service batches the windows of several images

// What a file goes through: waiting, reading, denoising, done; or failed, or cancelled.
export class Items {
  // `changed(item)` is called after each change of an item.
  constructor(changed) {
    Object.assign(this, { changed, all: [], running: 0, count: 0 });
  }

  add(file, name, settings) {
    const item = { id: (this.count += 1), file, name, settings: { ...settings }, mixing: { ...PLAIN }, state: "waiting" };
    this.all.push(item);
    this.set(item, {});
    this.start();
    return item;
  }

  remove(item) {
    this.stop(item);
    this.all.splice(this.all.indexOf(item), 1);
  }

  // Ends the work on an item, here and at the service.
  stop(item) {
    item.judging?.abort();
    if (!this.isBusy(item)) return;
    item.abort?.abort();
    if (item.job) cancel(item.job);
    this.set(item, { state: "cancelled", progress: null });
  }

  // Denoises an item anew, before those that wait.
  again(item, settings = item.settings) {
    this.stop(item);
    this.set(item, { settings: { ...settings }, state: "waiting", denoised: null, judged: null, model: null, why: null, error: null, urgent: true });
    this.start();
  }

  isBusy(item) {
    return ["waiting", "reading", "denoising"].includes(item.state);
  }

  set(item, values) {
    Object.assign(item, values);
    this.changed(item);
  }

  start() {
    while (this.running < AT_ONCE) {
      const waiting = this.all.filter((item) => item.state === "waiting");
      const next = waiting.find((item) => item.urgent) ?? waiting[0];
      if (!next) return;
      this.running += 1;
      this.work(next).finally(() => {
        this.running -= 1;
        this.start();
      });
    }
  }

  async work(item) {
    const abort = new AbortController(), { signal } = abort, { settings } = item;
    const isMine = () => item.abort === abort && !signal.aborted;
    this.set(item, { abort, job: randomName(), state: "reading", progress: null, urgent: false });
    let unfollow = () => {};
    try {
      if (!item.noisy) {
        // As the service reads it: browsers differ in what they make of a file, and cannot read all.
        const { blob } = await denoise(item.file, { strength: 0, format: "view" }, signal);
        this.set(item, { noisy: blob });
      }
      this.measure(item, signal);
      this.set(item, { state: "denoising" });
      unfollow = follow(item.job, (progress) => { if (isMine()) this.set(item, { progress }); });
      const { blob, model: taken, why } = await denoise(item.file, { ...settings, format: "view", job: item.job }, signal);
      if (isMine()) this.set(item, { state: "done", denoised: taken === "none" ? item.noisy : blob, model: taken, why });
    } catch (error) {
      if (isMine()) this.set(item, { state: "failed", error: error.message });
    } finally {
      unfollow();
    }
  }

  // What the noise is; that it cannot be told is no failure of the image.
  async measure(item, signal) {
    try {
      this.set(item, { analysis: await analyse(item.file, item.settings, signal) });
    } catch (error) {
      if (error.name !== "AbortError") this.set(item, { analysis: { description: error.message } });
    }
  }

  // What structure was lost, when somebody wants to know; after an error only `anew`.
  async judge(item, anew) {
    if (item.judged && !(anew && item.judged.error)) return;
    const { denoised } = item, isMine = () => item.denoised === denoised, job = randomName();
    item.judging = new AbortController();
    this.set(item, { judged: { asked: true } });
    const unfollow = follow(job, (progress) => { if (isMine()) this.set(item, { judged: { asked: true, progress } }); });
    try {
      const judged = await judge(item.file, { ...item.settings, job }, item.judging.signal);
      if (isMine()) this.set(item, { judged });
    } catch (error) {
      if (isMine()) this.set(item, { judged: { error: error.message } });
    } finally {
      unfollow();
    }
  }
}
