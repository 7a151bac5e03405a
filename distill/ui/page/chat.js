// The chat: student, base and teacher side by side. Nothing is loaded or asked before a click.

import { complain, el, get, post, text } from "./dom.js";

export function showChat(container, { run }) {
  const title = el("h1", { class: "hidden" }, `Chat with ${run}`);
  const body = el("div", { class: "chat" });
  container.replaceChildren(title, body);
  let ended = false;

  const start = async () => {
    try {
      const { value } = await get("/api/chat", { run });
      if (!ended) draw(value);
    } catch (error) {
      if (!ended) body.replaceChildren(el("p", { class: "notice" }, error.message));
    }
  };

  const draw = (state) => (state.is_open ? drawOpen(state) : drawClosed(state));

  function drawClosed({ outlook, fault }) {
    if (fault) {
      body.replaceChildren(el("p", { class: "notice", dir: "auto" }, fault));
      return;
    }
    const button = el("button", { type: "button", class: "main" }, "Begin");
    const note = el("p", { class: "note", role: "status" });
    button.addEventListener("click", async () => {
      button.disabled = true;
      note.textContent = "Preparing…";
      try {
        draw(await (await post("/api/chat/open", { run })).json());
        complain("");
      } catch (error) {
        button.disabled = false;
        note.textContent = "";
        complain(error.message);
      }
    });
    body.replaceChildren(
      el("div", { class: "box invitation" },
        el("h2", {}, "Student, base and teacher, side by side"),
        el("ul", {}, outlook.map((line) => el("li", { dir: "auto" }, line))),
        el("p", { class: "note" }, "The models load with the first question. What is said stays in memory, and ends with the conversation."),
        button, note));
  }

  function drawOpen({ sides, turns, temperature, system }) {
    const log = el("div", { class: "talk", role: "log", "aria-label": "Conversation" });
    const field = el("textarea", { id: "line", rows: 2, placeholder: "Ask all of them", "aria-label": "Your line" });
    const send = el("button", { class: "main" }, "Ask");
    const ticks = sides.map((side) => el("label", {}, el("input", { type: "checkbox", name: side, checked: true }), side));
    const warmth = el("input", { id: "temperature", type: "number", min: 0, max: 5, step: 0.1, value: temperature ?? 0.7 });
    const frame = el("input", { id: "system", value: system, placeholder: "none", autocomplete: "off" });
    const leave = el("button", { type: "button", onclick: release }, "End, and release the models");
    function release() {
      leave.disabled = true;
      post("/api/chat/close", {}).then(start, (error) => complain(error.message));
    }
    const columns = (answers, asked) => {
      const cells = Object.fromEntries(asked.map((side) => [side, el("article", { class: side }, el("h3", {}, side), el("p", { class: "note" }, "…"))]));
      for (const [side, said] of Object.entries(answers)) put(cells[side], said);
      return { node: el("div", { class: "columns" }, Object.values(cells)), cells };
    };
    const put = (cell, said) => cell?.lastElementChild.replaceWith(text(said || "(nothing)"));
    const exchange = (line, answers, asked) => {
      const { node, cells } = columns(answers, asked);
      log.append(el("section", { class: "exchange" }, el("h2", { class: "you" }, el("span", { class: "hidden" }, "You: "), text(line)), node));
      return cells;
    };
    for (const [line, answers] of past(turns)) exchange(line, answers, Object.keys(answers));

    const ask = async () => {
      const line = field.value.trim();
      const asked = sides.filter((side) => ticks.some((tick) => tick.firstElementChild.name === side && tick.firstElementChild.checked));
      if (!line || !asked.length || send.disabled) return;
      send.disabled = true;
      field.value = "";
      const cells = exchange(line, {}, asked);
      log.lastElementChild.scrollIntoView({ block: "nearest" });
      try {
        const reply = await post("/api/chat/ask", { run, line, sides: asked, system: frame.value, temperature: Number(warmth.value) });
        complain("");
        for await (const { side, text: said, fault } of lines(reply)) fault ? complain(fault) : put(cells[side], said);
      } catch (error) {
        complain(error.message);
      }
      for (const cell of Object.values(cells)) if (cell.lastElementChild.textContent === "…") put(cell, "(no answer)");
      send.disabled = false;
    };
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      ask();
    });
    const form = el("form", { class: "composer", onsubmit: (event) => { event.preventDefault(); ask(); } },
      el("div", { class: "line" }, field, send),
      el("div", { class: "tools" }, ticks, el("label", {}, "Temperature", warmth), el("label", { class: "system" }, "System", frame), leave));
    body.replaceChildren(log, form);
    field.focus();
  }

  start();
  return { end: () => { ended = true; } };
}

// Pairs of a line and the answers of those sides that were asked it.
function* past(turns) {
  const exchanges = new Map();
  for (const [side, texts] of Object.entries(turns)) {
    for (let at = 0; at + 1 < texts.length; at += 2) {
      const key = `${at} ${texts[at]}`;
      exchanges.set(key, [texts[at], { ...exchanges.get(key)?.[1], [side]: texts[at + 1] }]);
    }
  }
  yield* exchanges.values();
}

async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const pieces = (rest + value).split("\n");
    rest = pieces.pop();
    for (const piece of pieces) yield JSON.parse(piece);
  }
}
