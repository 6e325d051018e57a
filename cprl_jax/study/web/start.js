"use strict";

/* From the state of the session to the pages that are left. */

(async () => {
  let state;
  try {
    state = await backend.open();
    const outbox = memory.get("outbox"); // an answer that was given, but not acknowledged before the page went away
    if (outbox && outbox.step === state.steps[state.done]?.id) await save(outbox);
    if (outbox) state = await backend.open();
    memory.set("outbox", null);
  } catch (error) {
    return fail(error);
  }
  document.title = state.study.title;
  log.add("load", `${innerWidth} x ${innerHeight}, ratio ${devicePixelRatio}`);
  log.watch();
  if (state.done === state.steps.length) return showEnd(state);

  const jsPsych = initJsPsych({
    display_element: "stage",
    override_safe_mode: true, // what jsPsych warns of when it is opened from a disk (its loaders) is not used
    on_finish: async () => {
      try {
        showEnd(await patiently(() => backend.open()));
      } catch (error) {
        fail(error);
      }
    },
  });
  const found = {}; // by the browser check
  const timeline = [];
  let ready = false;
  for (const step of state.steps.slice(state.done)) {
    if (!ready && !["consent", "instructions"].includes(step.kind)) {
      timeline.push(...preparations(state, found));
      ready = true;
    }
    let record;
    const page = pages[step.kind](state.study, state, step);
    const made = page.record;
    delete page.record;
    page.on_finish = (data) => (record = made(data, found));
    timeline.push(page, { type: Save, step, record: () => () => record });
  }
  jsPsych.run(timeline);
})();

/** What a page that was just loaded needs before it can show images. */
function preparations(state, found) {
  const largest = {
    width: Math.max(...Object.values(state.images).map((image) => image.width)),
    height: Math.max(...Object.values(state.images).map((image) => image.height)),
  };
  const Fit = plugin("fit", {}, async (display) => {
    await untilItFits(display, largest, state.study.trial === "flicker" ? BUTTONS_BELOW : 0);
    return {};
  });
  const check = {
    type: jsPsychBrowserCheck,
    skip_features: ["webaudio", "webcam", "microphone"],
    on_finish: (data) => Object.assign(found, data),
  };
  const fullscreen = {
    type: jsPsychFullscreen,
    fullscreen_mode: true,
    message: card("Full screen", "The images are shown on the full screen, so that nothing else catches your eye."),
    button_label: "Go on",
    delay_after: 300,
  };
  const wanted = state.study.fullscreen && document.fullscreenEnabled;
  return [{ type: Load, state }, check, ...(wanted ? [fullscreen] : []), { type: Fit }];
}
