"use strict";

/* The study's server, as the page sees it. files.js has the same four functions for a folder of files. */

const backend = (() => {
  let token = "";

  async function ask(method, path, body) {
    const headers = { Authorization: `Bearer ${token}` };
    if (body) headers["Content-Type"] = "application/json";
    let reply;
    try {
      reply = await fetch(path, { method, headers, body: body && JSON.stringify(body), cache: "default" });
    } catch (error) {
      throw new Refused(0, "The server does not answer.");
    }
    if (!reply.ok) {
      const said = await reply.json().catch(() => ({}));
      throw new Refused(reply.status, said.error || `The server answered ${reply.status}.`);
    }
    return reply;
  }

  return {
    /** The state of this browser's session, which begins if there is none. */
    async open() {
      const inLink = new URLSearchParams(location.hash.slice(1)).get("session");
      const kept = inLink || memory.get("session");
      if (kept) {
        token = kept;
        try {
          const state = await (await ask("GET", "api/session")).json();
          remember();
          return state;
        } catch (error) {
          if (error.status !== 401 || inLink) throw error; // deleted: a new one begins
        }
      }
      token = [...crypto.getRandomValues(new Uint8Array(32))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
      memory.clear(); // of a session that was deleted, or of another study at this address
      // Kept first: a request whose reply is lost is made again with the same token, and begins nothing twice.
      memory.set("session", token);
      const state = await patiently(async () =>
        (await ask("POST", "api/sessions", { token, participant })).json());
      remember();
      return state;
    },

    /** The PNG file of an image. */
    async image(id) {
      return (await ask("GET", `api/images/${encodeURIComponent(id)}`)).blob();
    },

    /** Keeps the record of a step; what it returns is kept. */
    async submit(step, record, events) {
      return (await ask("POST", "api/steps", { step, record, events })).json();
    },

    async withdraw() {
      await ask("DELETE", "api/session");
      memory.clear();
    },
  };

  /** The token in the link lets the observer go on in another browser; what stands behind # is not sent to servers. */
  function remember() {
    memory.set("session", token);
    history.replaceState(null, "", `${location.pathname}${location.search}#session=${token}`);
  }
})();
