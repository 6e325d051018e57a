"use strict";

/* What lies beneath the pages: memory, the log of events, images, and showing them for so many milliseconds. */

/** A request that the server does not meet; `status` as in HTTP, 0 when there was no reply. */
class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** So many characters of a text at most, none of them cut in two, and without zeros, which no database keeps. */
const shortened = (text, most) => [...text.replaceAll("\0", "")].slice(0, most).join("");

/** How whoever sent the link calls the observer. */
const participant = shortened(new URLSearchParams(location.search).get("participant") || "", 100);

/**
 * localStorage, under names of our own, apart for each participant at one computer; without it (some private windows)
 * as long as the page lives.
 */
const memory = (() => {
  const prefix = `cprl-study ${location.pathname} ${encodeURIComponent(participant)} `; // Ann is not the beginning of Ann B
  const fallback = new Map();
  const guarded = (use, otherwise) => {
    try {
      return use();
    } catch (error) {
      return otherwise();
    }
  };
  return {
    get(name) {
      const text = guarded(() => localStorage.getItem(prefix + name), () => null) ?? fallback.get(name);
      return guarded(() => (text === undefined ? undefined : JSON.parse(text)), () => undefined);
    },
    set(name, value) {
      const text = JSON.stringify(value);
      fallback.set(name, text);
      guarded(() => localStorage.setItem(prefix + name, text), () => {});
    },
    clear() {
      fallback.clear();
      guarded(() => {
        for (const name of Object.keys(localStorage)) if (name.startsWith(prefix)) localStorage.removeItem(name);
      }, () => {});
    },
  };
})();

const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Does it again until the server answers: after a lost connection, a restart, or too many requests. */
async function patiently(work, onTrouble = () => {}) {
  for (let pause = 250; ; pause = Math.min(2 * pause, 5000)) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof Refused) || ![0, 429, 500, 502, 503, 504].includes(error.status)) throw error;
      onTrouble(error);
    }
    await wait(pause * (0.5 + Math.random())); // not all observers at once, when a server comes back
  }
}

/** What happened while the page was open. Sent with the next record, and kept until then. */
const log = {
  add(event, detail = "") {
    const events = memory.get("events") || [];
    if (events.length < 1000) events.push({ at_ms: Date.now(), event, detail: String(detail).slice(0, 100) });
    memory.set("events", events);
  },
  first() {
    return (memory.get("events") || []).slice(0, 200);
  },
  forget(count) {
    memory.set("events", (memory.get("events") || []).slice(count));
  },
  watch() {
    addEventListener("blur", () => log.add("blur"));
    addEventListener("focus", () => log.add("focus"));
    addEventListener("offline", () => log.add("offline"));
    addEventListener("online", () => log.add("online"));
    document.addEventListener("visibilitychange", () => log.add(document.hidden ? "hidden" : "visible"));
    document.addEventListener("fullscreenchange", () => log.add(document.fullscreenElement ? "fullscreen" : "window"));
    addEventListener("resize", () => log.add("resize", `${innerWidth} x ${innerHeight}, ratio ${devicePixelRatio}`));
  },
};

/** The images of the session, by their ids: files that were verified, decoded when their trial comes. */
const images = {
  files: new Map(),
  verified: "sha256",

  /** Gets all that are missing; `progress` hears (how many, of how many), and `onTrouble` of those asked for again. */
  async load(wanted, progress, onTrouble) {
    const left = Object.values(wanted).filter((image) => !images.files.has(image.id));
    let done = 0;
    const worker = async () => {
      for (let image = left.pop(); image; image = left.pop()) {
        images.files.set(image.id, await patiently(() => images.fetchOne(image), onTrouble));
        progress((done += 1), done + left.length);
      }
    };
    await Promise.all([worker(), worker(), worker(), worker()]);
  },

  async fetchOne(image) {
    const file = await backend.image(image.id);
    const damaged = (text) => backend.download // a file on a disk does not mend itself
      ? new Refused(404, `The file data/image-${image.id}.js is damaged: copy the whole folder again.`) : new Refused(0, text);
    if (file.size !== image.bytes) throw damaged("An image has arrived in part.");
    if (globalThis.crypto?.subtle) {
      const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
      const text = [...hash].map((byte) => byte.toString(16).padStart(2, "0")).join("");
      if (text !== image.sha256) throw damaged("An image has changed on its way.");
    } else {
      images.verified = "size"; // browsers offer hashes on https and on this machine alone
    }
    return file;
  },

  /** Pixels to draw, the values of the file: no conversion between colour spaces. */
  async decode(id) {
    return createImageBitmap(images.files.get(id), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  },
};

/** The window in pixels of the display, whether an image fits in there, and a pinch zoom. */
function room(size, below = 0) {
  const ratio = devicePixelRatio;
  const width = Math.floor(innerWidth * ratio);
  const height = Math.floor((innerHeight - below) * ratio);
  const pinch = globalThis.visualViewport ? visualViewport.scale : 1;
  return { width, height, ratio, pinch, fits: size.width <= width && size.height <= height && Math.abs(pinch - 1) < 0.01 };
}

/** A canvas in the middle whose pixels are those of the display: one of the image is one of the screen. */
function makeCanvas(parent, size, below = 0) {
  const canvas = document.createElement("canvas");
  const { ratio, width, height } = room(size, below);
  canvas.width = size.width;
  canvas.height = size.height;
  canvas.className = "image";
  canvas.style.width = `${size.width / ratio}px`;
  canvas.style.height = `${size.height / ratio}px`;
  canvas.style.left = `${Math.floor((width - size.width) / 2) / ratio}px`; // on whole pixels, or it would be smoothed
  canvas.style.top = `${Math.floor((height - size.height) / 2) / ratio}px`;
  parent.append(canvas);
  return canvas;
}

let fastest = Infinity; // time between two frames, milliseconds

/**
 * The time between two frames of the display, measured over `count` of them: the lower quartile, and the smallest of all
 * measurements of this page. A busy computer skips frames, and never shows more of them than the display has.
 */
function measureFrames(count) {
  return new Promise((resolve) => {
    const times = [];
    const tick = (time) => {
      times.push(time);
      if (times.length <= count) return requestAnimationFrame(tick);
      const gaps = times.slice(1).map((later, place) => later - times[place]).sort((a, b) => a - b);
      fastest = Math.min(fastest, gaps[Math.floor(gaps.length / 4)]);
      resolve(fastest);
    };
    requestAnimationFrame(tick);
  });
}

/**
 * Shows images one after the other, each from one frame to another.
 *
 * A callback of requestAnimationFrame draws what the display shows at the next frame, so the times between callbacks are
 * those between images on the screen. An image ends at the frame that is nearest to the time it is due.
 *
 * schedule: [place in bitmaps or -1 for grey, milliseconds]; stopped: whether to end before it is through.
 * Returns the measured durations, frames that were skipped, and when the last image ended (performance.now).
 */
function play(canvas, bitmaps, schedule, frame, stopped = () => false) {
  const context = canvas.getContext("2d", { alpha: false });
  const show = (place) => {
    if (place >= 0) context.drawImage(bitmaps[place], 0, 0);
    else {
      context.fillStyle = getComputedStyle(document.body).backgroundColor;
      context.fillRect(0, 0, canvas.width, canvas.height);
    }
  };
  return new Promise((resolve) => {
    const onsets = [];
    let due = -Infinity;
    let last;
    let dropped = 0;
    const tick = (time) => {
      if (last !== undefined) dropped += Math.max(0, Math.round((time - last) / frame) - 1);
      last = time;
      if (time >= due - frame / 2 || stopped()) {
        onsets.push(time);
        if (onsets.length > schedule.length || stopped()) {
          show(-1);
          return resolve({
            durations: onsets.slice(1).map((later, place) => later - onsets[place]),
            dropped,
            start: onsets[0],
            end: time,
          });
        }
        const [place, ms] = schedule[onsets.length - 1];
        show(place);
        due = time + ms;
      }
      requestAnimationFrame(tick);
    };
    show(-1);
    requestAnimationFrame(tick);
  });
}
