"use strict";

/* A folder of files in the place of the server: what http.js offers, and `download`. Answers wait in this browser. */

const FORMAT = "cprl_jax study answers 1";
let received; // each file of data/ is a script that calls it with its content

const backend = (() => {
  let queue = Promise.resolve();
  let study;
  let plan;

  const damaged = (name) => new Refused(404, `The file data/${name} is damaged: copy the whole folder again.`);

  /** The content of a file of data/; one at a time, as they all call the same function. */
  function read(name) {
    queue = queue.catch(() => {}).then(() => new Promise((resolve, reject) => {
      const script = document.createElement("script");
      received = resolve;
      script.onload = () => {
        script.remove();
        reject(damaged(name)); // unless it was received
      };
      script.onerror = () => reject(new Refused(404, `The file data/${name} is missing: copy the whole folder.`));
      script.src = `data/${name}`;
      document.head.append(script);
    }));
    return queue;
  }

  function kept(name, make) {
    if (memory.get(name) === undefined || memory.get(name) === null) memory.set(name, make());
    return memory.get(name);
  }

  const random = (count) => [...crypto.getRandomValues(new Uint8Array(count))];
  const letters = () => [...Array(memory.get("done") || 0).keys()].map((place) => memory.get(`letter ${place}`));

  return {
    async open() {
      if (!study) {
        study = await read("study.js");
        // Answers to another study that was in this folder are not answers to this one.
        if (memory.get("study") !== study.id) memory.clear();
        memory.set("study", study.id);
      }
      const asked = Number(new URLSearchParams(location.search).get("plan"));
      const number = kept("plan", () => (asked >= 1 && asked <= study.plans ? Math.floor(asked)
        : 1 + (new Uint32Array(new Uint8Array(random(4)).buffer)[0] % study.plans)));
      plan = plan || { number, ...(await read(`plan-${number}.js`)) };
      const done = memory.get("done") || 0;
      const code = done < plan.steps.length ? "" : kept("code", () =>
        random(8).map((byte) => "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"[byte % 32]).join(""));
      return { study, steps: plan.steps, images: plan.images, done, code };
    },

    async image(id) {
      const content = await read(`image-${id}.js`);
      try {
        const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
        return new Blob([bytes], { type: "image/png" });
      } catch (error) {
        throw damaged(`image-${id}.js`);
      }
    },

    async submit(step, record, events) {
      const done = memory.get("done") || 0;
      if (plan.steps[done]?.id !== step) throw new Refused(409, "It is not this step's turn.");
      memory.set(`letter ${done}`, { step, record, events });
      memory.set("done", done + 1);
      return { done: done + 1 };
    },

    async withdraw() {
      memory.clear();
    },

    /** Offers the answers as a file. */
    download() {
      const token = kept("token", () => random(32).map((byte) => byte.toString(16).padStart(2, "0")).join(""));
      const content = { format: FORMAT, study: study.id, plan: plan.number, token, participant, code: memory.get("code"),
        steps: letters() };
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([JSON.stringify(content)], { type: "application/json" }));
      link.download = `answers-${memory.get("code")}.json`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    },
  };
})();
