"use strict";

/* The pages of the study, as trials of jsPsych. What comes from the server is text, and never becomes HTML. */

const escaped = (text) => String(text).replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);

const ANSWERS = {
  same: { label: "Same", keys: ["s", "ArrowLeft"], hint: "S or ←" },
  different: { label: "Different", keys: ["d", "ArrowRight"], hint: "D or →" },
  first: { label: "First", keys: ["1", "ArrowLeft"], hint: "1 or ←" },
  second: { label: "Second", keys: ["2", "ArrowRight"], hint: "2 or →" },
};
const QUESTIONS = {
  yesno: "Did the two images look the same, or different?",
  flicker: "Does the image flicker?",
  "2afc": "Which of the last two was different from the first image?",
};
const FLICKER_LABELS = { same: "No flicker", different: "Flicker" };
const BUTTONS_BELOW = 110; // CSS pixels that the buttons of a flicker trial take

const label = (study, answer) => (study.trial === "flicker" && FLICKER_LABELS[answer]) || ANSWERS[answer].label;
const keyHint = (study, answer) => `<kbd>${ANSWERS[answer].hint.replace(" or ", "</kbd> or <kbd>")}</kbd>`;

/** A page made of a heading and paragraphs (HTML). */
const card = (heading, ...paragraphs) =>
  `<section class="card"><h1>${escaped(heading)}</h1>${paragraphs.map((text) => `<p>${text}</p>`).join("")}</section>`;

/** A page of ours, as a class for jsPsych: `work(display, trial)` returns what goes into the record. */
function plugin(name, parameters, work) {
  return class {
    static info = { name, version: "1.0.0", parameters, data: {} };

    constructor(jsPsych) {
      this.jsPsych = jsPsych;
    }

    async trial(display, trial) {
      try {
        this.jsPsych.finishTrial(await work(display, trial));
      } catch (error) {
        fail(error);
      }
    }
  };
}

const anything = { type: jsPsychModule.ParameterType.COMPLEX, default: undefined };

/** The last page of a session that cannot go on. */
function fail(error) {
  const text = error instanceof Refused ? error.message : "Something went wrong on this page. Load it again to go on where you were.";
  document.getElementById("stage").innerHTML = card("The study cannot go on here", escaped(text));
  if (!(error instanceof Refused)) console.error(error);
}

const pages = {
  consent(study) {
    return {
      type: jsPsychSurveyHtmlForm,
      preamble: "",
      html: `<section class="card"><h1>${escaped(study.title)}</h1>${study.consent
        .map((paragraph) => `<p>${escaped(paragraph)}</p>`).join("")}
        <label class="check"><input type="checkbox" name="agreed" id="agreed" required>
        <span>I have read this, and I want to take part.</span></label></section>`,
      button_label: "Begin",
      record: () => ({ agreed: true }),
    };
  },

  instructions(study) {
    const keys = study.answers.map((answer) =>
      `<span class="nowrap">${keyHint(study, answer)} for “${escaped(label(study, answer).toLowerCase())}”</span>`).join(", ");
    const seconds = (ms) => (ms === 1000 ? "one second" : `${ms / 1000} seconds`);
    const [, ms] = study.schedule[0];
    const task = {
      yesno: `You will see an image for ${seconds(ms)}, then grey, then a second image for as long. Some pairs are the same image
        twice; in others, one of the two was changed, mostly very little.`,
      flicker: `Two versions of an image take turns quickly in the same place. If they differ, you see something flicker.`,
      "2afc": `You will see an image, and then two more, each for ${seconds(ms)}. One of the last two is the first image again; the
        other was changed, mostly very little.`,
    }[study.trial];
    return {
      type: jsPsychInstructions,
      pages: [
        card("What you will do", task, `<strong>${QUESTIONS[study.trial]}</strong>`,
          "Look at the whole image, and answer by what you see. If you are not sure, go by your first impression."),
        card("How you answer", `With the keyboard, ${keys}; or with the buttons on the screen.`,
          `${study.practice ? "We begin with some practice, in which you are told the right answer. " : ""}There are breaks: use them to rest your eyes.`,
          `If you lose the connection or close this page by accident, open the same link again: you will go on where you were.`),
        card("Before we begin", "Set the zoom of your browser to 100 %, and the brightness of your display to what you are used to. Turn off night modes that make colours warmer.",
          "Sit straight in front of the display, at the distance you usually have, and close what might interrupt you."),
      ],
      show_clickable_nav: true,
      show_page_number: true,
      page_label: "",
      button_label_next: "Next",
      button_label_previous: "Back",
      record: () => ({}),
    };
  },

  display(study) {
    const squares = (kind) => [1, 2, 3, 4].map((level) => `<i class="${kind}${level}"></i>`).join("");
    const choice = (name) => `<select name="${name}" id="${name}" required><option value="">choose</option>${[0, 1, 2, 3, 4]
      .map((count) => `<option>${count}</option>`).join("")}</select>`;
    const steps = [...Array(11).keys()].map((level) => `<i class="step${level}"></i>`).join("");
    return {
      type: jsPsychSurveyHtmlForm,
      preamble: "",
      html: `<section class="card"><h1>Your display</h1>
        <p>From black to white there should be eleven steps:</p><div class="steps">${steps}</div>
        <div class="squares dark">${squares("dark")}</div>
        <label>How many squares can you see in the black field? ${choice("dark_seen")}</label>
        <div class="squares bright">${squares("bright")}</div>
        <label>How many squares can you see in the white field? ${choice("bright_seen")}</label></section>`,
      button_label: "Continue",
      record: (data, found) => ({
        dark_seen: Number(data.response.dark_seen),
        bright_seen: Number(data.response.bright_seen),
        frame_ms: 1000 / found.vsync_rate,
        pixel_ratio: devicePixelRatio,
        zoom: outerWidth / innerWidth,
        screen_width: screen.width,
        screen_height: screen.height,
        browser: `${found.browser} ${found.browser_version}`.slice(0, 100),
        system: String(found.os).slice(0, 100),
        mobile: Boolean(found.mobile),
        verified: images.verified,
      }),
    };
  },

  trial(study, state, step) {
    return { type: Trial, study, state, step, record: (data) => data.record };
  },

  break(study, state, step) {
    return { type: Break, study, step, record: () => ({}) };
  },

  comments() {
    return {
      type: jsPsychSurveyHtmlForm,
      preamble: "",
      html: `<section class="card"><h1>Nearly done</h1>
        <p>Is there anything we should know, such as an interruption, or how you told the images apart? You may leave this empty.</p>
        <textarea name="comment" id="comment" rows="5" maxlength="2000" aria-label="Comment"></textarea></section>`,
      button_label: "Finish",
      record: (data) => ({ comment: shortened(data.response.comment || "", 2000) }),
    };
  },
};

/** Gets and verifies all images. */
const Load = plugin("load", { state: anything }, async (display, { state }) => {
  display.innerHTML = `<section class="card"><h1>Loading the images</h1><progress></progress><p>This may take a minute.</p></section>`;
  const bar = display.querySelector("progress");
  await images.load(state.images, (done, of) => {
    bar.max = of;
    bar.value = done;
  }, (error) => {
    display.querySelector("p").textContent = `${error.message} It is asked for again: leave this page open.`;
  });
  return {};
});

/** Waits until the images fit into the window at their natural size; says what to do as long as they do not. */
async function untilItFits(display, size, below) {
  let told = false;
  while (!room(size, below).fits) {
    if (!told) log.add("too_small", `${innerWidth} x ${innerHeight}, ratio ${devicePixelRatio}`);
    told = true;
    const { width, height, pinch } = room(size, below);
    display.innerHTML = Math.abs(pinch - 1) < 0.01
      ? card("The window is too small", `The images have ${size.width} x ${size.height} pixels, and this window shows
          ${width} x ${height}. They must not be made smaller: that would hide what we ask for.`,
        "Make the window larger, use the full screen (F11), turn your device on its side, or zoom out (Ctrl and -). This page goes on by itself when they fit.")
      : card("The page is zoomed", "Zoom out with two fingers until the page has its usual size. It goes on by itself.");
    await wait(200);
  }
  return told;
}

/** One trial: images, and then an answer (with flicker, meanwhile). */
const Trial = plugin("pair", { study: anything, state: anything, step: anything }, async (display, { study, state, step }) => {
  const flicker = study.trial === "flicker";
  const below = flicker ? BUTTONS_BELOW : 0;
  const size = state.images[step.stimuli[0]];
  const bitmaps = await Promise.all(step.stimuli.map(images.decode));
  await untilItFits(display, size, below);
  const shown = (memory.get("shown") || {})[step.id] + 1 || 1;
  memory.set("shown", { [step.id]: shown });
  let hidden = !document.hasFocus();
  const leave = () => (hidden = true);
  addEventListener("blur", leave);
  document.addEventListener("visibilitychange", leave);
  const started = Date.now();

  display.innerHTML = `<div class="trial"></div>`;
  document.body.classList.add("quiet");
  const stage = display.firstElementChild;
  const canvas = makeCanvas(stage, size, below);
  const cross = document.createElement("span");
  cross.className = "cross";
  if (!flicker) stage.append(cross);
  const frame = await measureFrames(Math.max(5, Math.round(Math.min(500, study.schedule[0][1]) / 16)));
  cross.remove();

  let given;
  const answering = flicker ? answer(stage, study).then((got) => (given = got)) : undefined;
  const played = await play(canvas, bitmaps, study.schedule, frame, () => given !== undefined);
  removeEventListener("blur", leave);
  document.removeEventListener("visibilitychange", leave);
  canvas.remove();
  bitmaps.forEach((bitmap) => bitmap.close());
  await (answering || answer(stage, study, progressOf(state, step)).then((got) => (given = got)));
  const cut = played.durations.at(-1) <= study.schedule[0][1]; // with flicker, the answer may have made the last shorter
  const whole = cut ? played.durations.slice(0, -1) : played.durations;
  const durations = !flicker ? played.durations : whole.length ? [Math.min(...whole), Math.max(...whole)] : [];
  const record = {
    answer: given.answer,
    input: given.input,
    rt_ms: Math.max(0, given.time - (flicker ? played.start : played.end)),
    durations_ms: durations.map((ms) => Math.round(100 * ms) / 100),
    frame_ms: Math.round(100 * frame) / 100,
    dropped_frames: played.dropped,
    shown,
    hidden,
    fullscreen: Boolean(document.fullscreenElement),
    pixel_ratio: devicePixelRatio,
    pinch_zoom: room(size).pinch,
    width: innerWidth,
    height: innerHeight,
    started_ms: started,
  };
  if (step.training) await feedback(display, study, step, given.answer);
  document.body.classList.remove("quiet");
  return { record };
});

function progressOf(state, step) {
  const trials = state.steps.filter((other) => other.kind === "trial" && other.block === step.block);
  return `${step.training ? "Practice" : "Pair"} ${trials.indexOf(step) + 1} of ${trials.length}`;
}

/** Waits for a key or a button: { answer, input, time }. */
function answer(parent, study, progress = "") {
  const form = document.createElement("div");
  form.className = "answer";
  form.innerHTML = `<p class="question">${QUESTIONS[study.trial]}</p><div class="buttons">${study.answers.map((name) =>
    `<button type="button" id="answer-${name}">${escaped(label(study, name))}<small>${keyHint(study, name)}</small></button>`)
    .join("")}</div><p class="progress">${escaped(progress)}</p>`;
  parent.append(form);
  return new Promise((resolve) => {
    const done = (name, input, time) => {
      removeEventListener("keydown", onKey);
      form.remove();
      resolve({ answer: name, input, time });
    };
    const onKey = (event) => {
      if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
      const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
      const name = study.answers.find((one) => ANSWERS[one].keys.includes(key));
      if (!name) return;
      event.preventDefault();
      done(name, "key", event.timeStamp);
    };
    addEventListener("keydown", onKey);
    for (const name of study.answers) {
      form.querySelector(`#answer-${name}`).addEventListener("click", (event) =>
        done(name, event.pointerType === "touch" ? "touch" : event.detail ? "mouse" : "key", event.timeStamp));
    }
  });
}

/** In training: whether the answer was right. */
async function feedback(display, study, step, given) {
  const right = given === step.expected;
  const truth = study.trial === "2afc" ? `It was the ${step.expected} of the two.`
    : step.expected === "same" ? "It was the same image twice." : "One of the two images was changed.";
  display.innerHTML = card(right ? "Right" : "Not this time", escaped(truth)) +
    `<div class="buttons"><button type="button" id="go-on">Go on<small><kbd>Space</kbd></small></button></div>`;
  await pressed(display.querySelector("#go-on"));
}

/** Waits for a button, or the space bar or Enter. */
function pressed(button) {
  return new Promise((resolve) => {
    const done = () => {
      removeEventListener("keydown", onKey);
      resolve();
    };
    const onKey = (event) => {
      if (button.disabled || event.repeat || ![" ", "Enter"].includes(event.key)) return;
      event.preventDefault();
      done();
    };
    addEventListener("keydown", onKey);
    button.addEventListener("click", done);
  });
}

const Break = plugin("break", { study: anything, step: anything }, async (display, { study, step }) => {
  const first = step.block === 1;
  display.innerHTML = (first
    ? card("That was the practice", "From now on you are not told the right answer. Many differences are very small.",
      study.trial === "2afc" ? "If you see none, guess." : "If you see none, say so.")
    : card("Time for a break", `You have done ${step.block - 1} of ${step.blocks} parts. Rest your eyes: look into the distance, and get up if you like.`)) +
    `<div class="buttons"><button type="button" id="go-on"></button></div>`;
  const button = display.querySelector("#go-on");
  const going = pressed(button);
  for (let left = first ? 0 : study.break_seconds; left > 0; left -= 1) {
    button.disabled = true;
    button.textContent = `Go on in ${left} s`;
    await wait(1000);
  }
  button.disabled = false;
  button.innerHTML = "Go on<small><kbd>Space</kbd></small>";
  await going;
  return {};
});

/** Sends a record until it is kept. Only then does the study go on. */
const Save = plugin("save", { step: anything, record: anything }, async (display, { step, record }) => {
  await save({ step: step.id, record: record() }, () => {
    display.innerHTML = card("Waiting for the connection", "Your answer is safe on this device, and is sent as soon as the server can be reached. Leave this page open.");
  });
  return {};
});

async function save(letter, onTrouble = () => {}) {
  letter.events = log.first();
  memory.set("outbox", letter);
  let troubled = false;
  try {
    await patiently(() => backend.submit(letter.step, letter.record, letter.events), (error) => {
      if (!troubled) log.add("retry", error.status);
      troubled = true;
      onTrouble();
    });
  } catch (error) {
    memory.set("outbox", null);
    if (error.status !== 409) throw error;
    location.reload(); // answered in another window: this one goes on where that one is
    await new Promise(() => {});
  }
  log.forget(letter.events.length);
  memory.set("outbox", null);
}

/** The last page. */
function showEnd(state) {
  document.body.classList.remove("quiet");
  const stage = document.getElementById("stage");
  stage.innerHTML = `<section class="card"><h1>Thank you</h1><p>Your answers are ${backend.download ? "complete" : "stored"}. Your completion code is</p>
    <p class="code" id="code">${escaped(state.code)}</p><p>Copy it if you were asked for it. You may close this page.</p></section>
    <div class="buttons">${backend.download ? `<button type="button" id="download">Save my answers</button>` : ""}
    <button type="button" id="withdraw" class="plain">Withdraw: delete all my answers</button></div>`;
  if (backend.download) {
    stage.querySelector("#download").addEventListener("click", () => backend.download());
    backend.download();
  }
  stage.querySelector("#withdraw").addEventListener("click", async () => {
    if (!confirm("Delete everything that was recorded about you in this study? This cannot be undone.")) return;
    try {
      await patiently(() => backend.withdraw());
      history.replaceState(null, "", location.pathname + location.search);
      stage.innerHTML = card("Your answers are deleted", `${backend.download
        ? `Delete the file answers-${escaped(state.code)}.json as well, where it was saved. ` : ""}Thank you for your time. You may close this page.`);
    } catch (error) {
      fail(error);
    }
  });
}
