"use strict";
(() => {
  const $ = (id) => document.getElementById(id);

  // Dark and light

  const theme = $("theme");
  const dark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const nameTheme = () => {
    theme.textContent = dark() ? "Light" : "Dark";
  };
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    nameTheme();
  });
  theme.hidden = false;
  nameTheme();

  // Kinds of prompt in the table of metrics

  const parts = Array.from(document.querySelectorAll("tr.part"));
  const showParts = $("parts");
  if (showParts && parts.length) {
    showParts.hidden = false;
    showParts.addEventListener("click", () => {
      const open = parts[0].hidden;
      for (const row of parts) row.hidden = !open;
      showParts.textContent = open ? "Hide kinds of prompt" : "Show kinds of prompt";
    });
  }

  if (!$("data")) return;

  // The viewer. Texts of models become text nodes, never markup; Markdown becomes elements of the list below.

  const data = JSON.parse($("data").textContent);
  const cards = $("cards");
  const CHUNK = 60;
  const hasPrevious = data.prompts.some((prompt) => prompt.answers.previous);
  const SHOWN = ["base", ...(hasPrevious ? ["previous"] : []), "student", "teacher"];
  const state = { find: "", category: "", outcome: "", flag: "", sort: "worst", prompt: "" };
  const view = { diff: false, again: false, blind: false, surprise: "" };
  const byId = new Map(data.prompts.map((prompt, place) => [prompt.id, Object.assign(prompt, { place })]));
  let listed = [];
  let drawn = 0;

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  const TAGS = new Set(
    "p ul ol li blockquote strong em s code pre table thead tbody tr th td hr br h1 h2 h3 h4 h5 h6".split(" "),
  );
  const markdown = window.markdownit({ html: false, linkify: false, typographer: false });

  const address = (token) => {
    const href = token.attrGet("href") || "";
    return /^(https?:\/\/|mailto:)/i.test(href) ? href : null;
  };

  const leaf = (token) => {
    switch (token.type) {
      case "text":
        return document.createTextNode(token.content);
      case "softbreak":
        return document.createTextNode("\n");
      case "hardbreak":
        return make("br");
      case "code_inline":
        return make("code", {}, token.content);
      case "fence":
      case "code_block":
        return make("pre", {}, make("code", {}, token.content));
      case "image":
        return document.createTextNode(`[image: ${token.content}]`);
      case "hr":
        return make("hr");
      default:
        return document.createTextNode(token.content || "");
    }
  };

  const opened = (token) => {
    if (token.tag === "a") {
      const href = address(token);
      return href ? make("a", { href, rel: "noreferrer noopener nofollow", target: "_blank" }) : make("span");
    }
    if (!TAGS.has(token.tag)) return make("div");
    if (/^h[1-6]$/.test(token.tag)) return make("p", { class: "heading" });
    return make(token.tag);
  };

  const build = (tokens, into) => {
    const stack = [into];
    for (const token of tokens) {
      const top = stack[stack.length - 1];
      if (token.nesting === 1) {
        const element = opened(token);
        top.append(element);
        stack.push(element);
      } else if (token.nesting === -1) {
        if (stack.length > 1) stack.pop();
      } else if (token.type === "inline") {
        build(token.children || [], top);
      } else {
        top.append(leaf(token));
      }
    }
    return into;
  };

  const formatted = (text) => {
    const block = make("div", { class: "text markdown", dir: "auto" });
    try {
      return build(markdown.parse(text, {}), block);
    } catch {
      block.textContent = text;
      return block;
    }
  };

  const MOST_DIFFED = 6000;
  const differing = (text, other, kind) => {
    const block = make("div", { class: "text", dir: "auto" });
    if (text.length + other.length > MOST_DIFFED) {
      block.textContent = text;
      return block;
    }
    for (const piece of window.Diff.diffWords(other, text)) {
      if (piece.removed) continue;
      block.append(piece.added ? make("mark", { class: kind }, piece.value) : document.createTextNode(piece.value));
    }
    return block;
  };

  // How surprising each token of the teacher's answer is

  const WHO = { student: "the student", base: "the base" };
  const unpacked = (prompt, text) => {
    const { widths, ...levels } = prompt.surprise;
    const digit = (char) => data.surprise.alphabet.indexOf(char);
    const nats = (model, place) => (levels[model] ? (digit(levels[model][place]) / data.surprise.steps) ** 2 : undefined);
    const tokens = [];
    let start = 0;
    let end = 0;
    for (const char of widths) {
      end += digit(char);
      if (digit(char) === data.surprise.alphabet.length - 1) continue;
      const place = tokens.length;
      tokens.push({ text: text.slice(start, end), student: nats("student", place), base: nats("base", place) });
      start = end;
    }
    return [tokens, text.slice(start)];
  };
  const shade = (nats) => Math.min(7, Math.floor(2 * Math.sqrt(nats)));
  const quoted = (text) => `“${text.trim() || (/\n/.test(text) ? "line break" : "space")}”`;
  const figures = (token) =>
    Object.keys(WHO)
      .filter((model) => token[model] !== undefined)
      .map((model) => `${token[model].toFixed(1)} nats for ${WHO[model]}`)
      .join(", ");
  const mean = (tokens, model) => tokens.reduce((sum, token) => sum + token[model], 0) / tokens.length;

  const heated = (prompt, text, model) => {
    const [tokens, rest] = unpacked(prompt, text);
    const top = [...tokens].sort((a, b) => b[model] - a[model]).slice(0, 5).filter((token) => token[model] >= 1);
    const means = Object.keys(WHO)
      .filter((one) => tokens[0][one] !== undefined)
      .map((one) => `${mean(tokens, one).toFixed(1)} for ${WHO[one]}`);
    const told = top.map((token) => `${quoted(token.text)} ${token[model].toFixed(1)}`).join(", ");
    const summary = `Nats a token, on average: ${means.join(", ")}.${told ? ` Most surprising to ${WHO[model]}: ${told}.` : ""}`;
    const block = make("div", { class: "text heat", dir: "auto", role: "group" });
    block.setAttribute("aria-label", `The teacher’s answer by how surprising each token is to ${WHO[model]}; the arrow keys go from token to token`);
    const readout = make("output", { class: "rest" }, "Point at a token, or go through them with the arrow keys.");
    const spans = tokens.map((token, place) => {
      const span = make("span", { class: `heat-${shade(token[model])}`, title: figures(token), tabindex: place ? "-1" : "0" }, token.text);
      span.dataset.place = place;
      return span;
    });
    block.append(...spans, rest);
    const tell = (event) => {
      const place = event.target.dataset.place;
      if (place === undefined) return;
      readout.value = `${quoted(tokens[place].text)}, token ${Number(place) + 1} of ${tokens.length}: ${figures(tokens[place])}`;
    };
    block.addEventListener("mouseover", tell);
    block.addEventListener("focusin", (event) => {
      for (const span of spans) if (span.tabIndex === 0) span.tabIndex = -1;
      event.target.tabIndex = 0;
      tell(event);
    });
    block.addEventListener("keydown", (event) => {
      const here = Number(event.target.dataset.place);
      const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: spans.length - 1 }[event.key];
      if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      spans[Math.max(0, Math.min(spans.length - 1, to))].focus();
    });
    const legend = make("p", { class: "rest legend" }, "nats: ");
    [0, 0.3, 1, 2.3, 4, 6.3, 9, 12.3].forEach((least, level) => {
      legend.append(make("span", { class: `heat-${level}` }, level === 7 ? `${least} or more` : String(least)), " ");
    });
    return [block, readout, make("p", { class: "rest" }, summary), legend];
  };

  // What a prompt is

  const asked = (prompt) => prompt.messages.filter((turn) => turn.role === "user").map((turn) => turn.text);
  const opening = (prompt) => (asked(prompt).at(-1) || "").replace(/\s+/g, " ").trim().slice(0, 200);
  const score = (prompt, model, name) => prompt.scores[model]?.[name];
  const haystack = (prompt) => {
    prompt.words ??= [
      prompt.id,
      ...prompt.messages.map((turn) => turn.text),
      ...(prompt.turns || []),
      ...Object.values(prompt.answers).map((answer) => answer.text),
    ]
      .join("\n")
      .toLowerCase();
    return prompt.words;
  };
  const FLAGS = {
    "not taught": (prompt) => prompt.coverage?.verdict === "not taught",
    "taught and failed": (prompt) => prompt.coverage?.verdict === "taught and failed",
    leaked: (prompt) => Boolean(prompt.leak?.leaked),
    "not leaked": (prompt) => prompt.leak && !prompt.leak.leaked,
    "student was cut": (prompt) => prompt.answers.student?.finish === "length",
    "judge contradicts itself": (prompt) => {
      const games = prompt.judge?.pairs?.["student:teacher"]?.games || [];
      return games.length === 2 && games[0].verdict !== games[1].verdict;
    },
  };
  const SORTS = { worst: "worst first", best: "best first", longest: "longest answer first", order: "by id" };

  const fits = (prompt) => {
    if (state.category && prompt.category !== state.category) return false;
    if (state.outcome && prompt.outcome?.value !== state.outcome) return false;
    if (state.flag && !FLAGS[state.flag]?.(prompt)) return false;
    const words = state.find.toLowerCase().split(/\s+/).filter(Boolean);
    return words.every((word) => haystack(prompt).includes(word));
  };

  const length = (prompt) => prompt.answers.student?.text.length || 0;
  const ordered = (prompts) => {
    if (state.sort === "best") return [...prompts].reverse();
    if (state.sort === "longest") return [...prompts].sort((a, b) => length(b) - length(a) || a.place - b.place);
    if (state.sort === "order") {
      return [...prompts].sort((a, b) => a.id.localeCompare(b.id, undefined, { numeric: true }));
    }
    return prompts;
  };

  // Votes

  const key = `distill votes: ${data.run}`;
  const stored = () => {
    try {
      return JSON.parse(localStorage.getItem(key)) || {};
    } catch {
      return {};
    }
  };
  let votes = stored();
  const store = () => {
    try {
      localStorage.setItem(key, JSON.stringify(votes));
    } catch {
      // Without storage, votes last as long as the page.
    }
  };

  const isTurned = (id) => {
    let hash = 2166136261;
    for (const char of id) hash = Math.imul(hash ^ char.codePointAt(0), 16777619);
    return (hash >>> 7) % 2 === 1;
  };
  const sides = (prompt) => (isTurned(prompt.id) ? ["teacher", "student"] : ["student", "teacher"]);

  const tally = () => {
    const cast = Object.entries(votes).filter(([id]) => byId.has(id));
    const count = (choice) => cast.filter(([, vote]) => vote === choice).length;
    const judged = cast
      .map(([id, vote]) => [vote, byId.get(id).judge?.pairs?.["student:teacher"]?.outcome])
      .filter(([, outcome]) => outcome && outcome !== "unparsed");
    const same = { student: "win", teacher: "loss", tie: "tie", bad: "tie" };
    const agreed = judged.filter(([vote, outcome]) => same[vote] === outcome).length;
    const judge = judged.length ? `; the judge agrees on ${agreed} of ${judged.length}` : "";
    $("tally").value = cast.length
      ? `${cast.length} votes: student ${count("student")}, teacher ${count("teacher")}, tie ${count("tie")}, both bad ${count("bad")}${judge}.`
      : "No votes yet: names are hidden and the sides drawn by prompt until you vote.";
  };

  const cast = (prompt, choice) => {
    if (choice === undefined) delete votes[prompt.id];
    else votes[prompt.id] = choice;
    store();
    tally();
    refill(prompt);
  };

  // Cards

  const badge = (text, hint, alert) => make("span", { class: alert ? "badge alert" : "badge", title: hint || "" }, text);
  const number = (value) => (value === undefined ? "–" : Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(2));

  const badges = (prompt, model) => {
    const answer = prompt.answers[model];
    const list = make("p", { class: "badges" });
    if (!answer) return list;
    const ending = { stop: "stopped", length: "cut", unknown: "end unknown" }[answer.finish] || String(answer.finish);
    list.append(badge(ending, `${ending} after ${answer.tokens ?? "?"} tokens`, answer.finish === "length"));
    for (const name of ["accuracy", "field_f1", "rouge_l", "similarity", "nll_per_byte", "style_distance", "repetition", "instructions"]) {
      const value = score(prompt, model, name);
      if (value !== undefined) list.append(badge(`${data.titles[name] || name} ${number(value)}`, name));
    }
    const grade = prompt.judge?.single?.[model];
    if (grade) list.append(badge(`grade ${grade.score ?? "unreadable"}`, grade.reason));
    return list;
  };

  const column = (prompt, model, title, plain) => {
    const article = make("article", { class: plain ? "hidden-side" : model }, make("h3", {}, title));
    const answer = prompt.answers[model];
    if (!plain) article.append(badges(prompt, model));
    if (!answer) article.append(make("p", { class: "rest" }, "no answer"));
    for (const text of answer?.earlier || []) {
      article.append(make("div", { class: "text earlier", dir: "auto" }, text));
    }
    if (answer && !answer.text) article.append(make("p", { class: "rest" }, "an empty answer"));
    if (answer?.text) {
      const other = model === "teacher" ? prompt.answers.student : prompt.answers.teacher;
      const shown = view.diff && !plain && other && !["base", "previous"].includes(model);
      if (model === "teacher" && !plain && prompt.surprise?.[view.surprise]) {
        article.append(...heated(prompt, answer.text, view.surprise));
      } else {
        article.append(shown ? differing(answer.text, other.text, model) : formatted(answer.text));
      }
    }
    return article;
  };

  const about = (prompt) => {
    const list = make("ul", { class: "verdicts" });
    const line = (term, text) => list.append(make("li", {}, make("strong", {}, term), `: ${text}`));
    if (prompt.why) line("Outcome", prompt.why);
    for (const [pair, told] of Object.entries(prompt.judge?.pairs || {})) {
      line(`Judge, ${pair.replace(":", " against ")}`, told.outcome);
      for (const game of told.games || []) line(`${game.first} shown first`, `${game.verdict}. ${game.reason || ""}`);
    }
    if (prompt.leak?.overlap) {
      line("In training", `${(100 * prompt.leak.overlap).toFixed(0)}% of its runs of 8 words, in row ${prompt.leak.row}`);
    }
    for (const near of prompt.coverage?.nearest || []) {
      line(`Near it in training (${number(near.similarity)}), row ${near.id}`, near.prompt);
    }
    return list.children.length ? make("details", {}, make("summary", {}, "Why"), list) : "";
  };

  const ballot = (prompt) => {
    const [left, right] = sides(prompt);
    const choices = [["1 Left", left], ["2 Right", right], ["3 Tie", "tie"], ["0 Both bad", "bad"]];
    return make(
      "p",
      { class: "vote" },
      ...choices.map(([label, choice]) => {
        const button = make("button", { type: "button" }, label);
        button.addEventListener("click", () => cast(prompt, choice));
        return button;
      }),
    );
  };

  const link = (prompt) => make("a", { class: "link", href: `#pair?prompt=${encodeURIComponent(prompt.id)}` }, "link");

  const body = (prompt) => {
    const question = make("div", { class: "prompt" });
    for (const turn of prompt.messages) {
      if (prompt.messages.length > 1) question.append(make("p", { class: "role" }, String(turn.role)));
      question.append(make("div", { class: "text", dir: "auto" }, turn.text));
    }
    for (const turn of prompt.turns || []) {
      question.append(make("p", { class: "role" }, "then"), make("div", { class: "text", dir: "auto" }, turn));
    }
    if (prompt.reference) question.append(make("p", { class: "rest" }, `Reference: ${prompt.reference}`));
    const vote = votes[prompt.id];
    if (view.blind && !vote) {
      const columns = sides(prompt).map((model, place) => column(prompt, model, ["Left", "Right"][place], true));
      return [question, make("div", { class: "columns" }, ...columns), ballot(prompt)];
    }
    const models = view.again && prompt.answers.teacher_again ? [...SHOWN, "teacher_again"] : SHOWN;
    const columns = make("div", { class: "columns" }, ...models.map((model) => column(prompt, model, data.models[model])));
    const said = [];
    if (view.blind) {
      const undo = make("button", { type: "button" }, "Take it back");
      undo.addEventListener("click", () => cast(prompt, undefined));
      said.push(make("p", { class: "vote" }, `Your vote: ${{ bad: "both bad" }[vote] || vote}. `, undo));
    }
    return [question, columns, ...said, about(prompt), make("p", { class: "rest" }, link(prompt))];
  };

  const fill = (card, prompt) => {
    card.lastElementChild.replaceChildren(...body(prompt));
  };
  const cardOf = (id) => Array.from(cards.children).find((card) => card.dataset.id === id);
  const refill = (prompt) => {
    const card = cardOf(prompt.id);
    if (card?.open) fill(card, prompt);
  };

  const draw = (prompt) => {
    const summary = make("summary", {}, make("span", { class: "ordinal" }, String(prompt.place + 1)));
    summary.append(make("bdi", { class: "opening" }, opening(prompt)));
    if (prompt.category !== "all") summary.append(badge(prompt.category));
    if (prompt.outcome && !view.blind) {
      const word = { win: "better", loss: "worse", tie: "no better", unparsed: "undecided" }[prompt.outcome.value];
      summary.append(badge(word || "?", prompt.why, prompt.outcome.value === "loss"));
    }
    const card = make("details", { class: "card", "data-id": prompt.id }, summary, make("div", { class: "body" }));
    card.addEventListener("toggle", () => {
      if (card.open) fill(card, prompt);
      else card.lastElementChild.replaceChildren();
    });
    return card;
  };

  const more = () => {
    const next = listed.slice(drawn, drawn + CHUNK);
    cards.append(...next.map(draw));
    drawn += next.length;
  };
  const foot = make("p", { class: "foot" });
  cards.after(foot);
  new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting) && drawn < listed.length) more();
  }, { rootMargin: "1200px" }).observe(foot);

  const list = () => {
    listed = ordered(data.prompts.filter(fits));
    drawn = 0;
    cards.replaceChildren();
    more();
    const all = data.prompts.length;
    $("count").value = listed.length === all ? `${all} prompts` : `${listed.length} of ${all} prompts`;
  };

  const reveal = (id) => {
    const place = listed.findIndex((prompt) => prompt.id === id);
    if (place < 0) return;
    while (drawn <= place) more();
    const card = cardOf(id);
    card.open = true;
    card.scrollIntoView({ block: "start" });
    card.firstElementChild.focus({ preventScroll: true });
  };

  // Filters and the address

  const FIELDS = ["find", "category", "outcome", "flag", "sort"];
  const written = () => {
    const query = new URLSearchParams();
    for (const name of FIELDS) if (state[name] && state[name] !== "worst") query.set(name, state[name]);
    return query.size ? `#pair?${query}` : "#pair";
  };
  const change = (name, value) => {
    state[name] = value;
    history.replaceState(null, "", written());
    list();
  };
  const read = () => {
    const [name, query] = location.hash.slice(1).split("?");
    if (name !== "pair" || query === undefined) return;
    const wanted = new URLSearchParams(query);
    for (const field of FIELDS) {
      state[field] = wanted.get(field) || (field === "sort" ? "worst" : "");
      $(field).value = state[field];
    }
    list();
    if (wanted.get("prompt")) reveal(wanted.get("prompt"));
    else $("pair").scrollIntoView();
  };

  const options = (id, first, values) => {
    const select = $(id);
    if (first) select.append(make("option", { value: "" }, first));
    for (const [value, title] of values) select.append(make("option", { value }, title));
    select.parentElement.hidden = select.children.length < 2;
    select.addEventListener("change", () => change(id, select.value));
  };
  const counted = (values) => {
    const found = new Map();
    for (const value of values) if (value) found.set(value, (found.get(value) || 0) + 1);
    return [...found].sort(([a], [b]) => a.localeCompare(b)).map(([value, count]) => [value, `${value} (${count})`]);
  };
  options("category", "all", counted(data.prompts.map((prompt) => prompt.category)));
  if ($("category").children.length === 2) $("category").parentElement.hidden = true;
  const outcomes = { win: "better", loss: "worse", tie: "no better", unparsed: "undecided" };
  const seen = counted(data.prompts.map((prompt) => prompt.outcome?.value));
  options("outcome", "all", seen.map(([value, title]) => [value, title.replace(value, outcomes[value] || value)]));
  const flags = Object.keys(FLAGS).map((name) => [name, data.prompts.filter(FLAGS[name]).length]);
  options("flag", "any", flags.filter(([, count]) => count).map(([name, count]) => [name, `${name} (${count})`]));
  options("sort", null, Object.entries(SORTS));
  $("find").addEventListener("input", () => change("find", $("find").value));
  addEventListener("hashchange", read);

  const redraw = () => {
    const open = Array.from(cards.children).filter((card) => card.open).map((card) => card.dataset.id);
    for (const id of open) refill(byId.get(id));
  };
  const toggle = (id, name, after) => {
    const button = $(id);
    button.addEventListener("click", () => {
      view[name] = !view[name];
      button.setAttribute("aria-pressed", String(view[name]));
      if (after) after();
      redraw();
    });
  };
  toggle("diff", "diff");
  toggle("again", "again");
  toggle("blind", "blind", () => {
    $("ballot").hidden = !view.blind;
    document.body.classList.toggle("blind", view.blind);
    tally();
    list();
  });
  const { shown, known } = data.surprise;
  const surprise = $("surprise");
  surprise.parentElement.hidden = !shown;
  surprise.addEventListener("change", () => {
    view.surprise = surprise.value;
    $("surprised").hidden = !view.surprise || shown === known;
    redraw();
  });
  $("surprised").textContent = `This page holds the tokens of ${shown} of ${known} prompts, the worst and the best; answers.jsonl holds all.`;
  $("again").hidden = !data.prompts.some((prompt) => prompt.answers.teacher_again);
  $("help").addEventListener("click", () => {
    $("keys").hidden = !$("keys").hidden;
    $("help").setAttribute("aria-expanded", String(!$("keys").hidden));
  });
  $("save").addEventListener("click", () => {
    const rows = Object.entries(votes).map(([id, vote]) => JSON.stringify({ id, vote, sides: sides({ id }) }));
    const file = new Blob([`${rows.join("\n")}\n`], { type: "application/jsonl" });
    const anchor = make("a", { href: URL.createObjectURL(file), download: "votes.jsonl" });
    anchor.click();
    URL.revokeObjectURL(anchor.href);
  });
  $("forget").addEventListener("click", () => {
    votes = {};
    store();
    tally();
    redraw();
  });

  // Keys

  const current = () => document.activeElement?.closest?.("#cards > details");
  const step = (by) => {
    const here = current();
    const id = here?.dataset.id;
    const place = id ? listed.findIndex((prompt) => prompt.id === id) + by : 0;
    if (place < 0 || place >= listed.length) return;
    while (drawn <= place) more();
    const summary = cards.children[place].firstElementChild;
    summary.focus({ preventScroll: true });
    cards.children[place].scrollIntoView({ block: "nearest" });
  };
  const flip = () => {
    const card = current();
    if (card) card.open = !card.open;
  };
  const vote = (place) => {
    const prompt = byId.get(current()?.dataset.id);
    if (prompt && view.blind) cast(prompt, [...sides(prompt), "tie", "bad"][place]);
  };
  const KEYS = {
    j: () => step(1), n: () => step(1), k: () => step(-1), p: () => step(-1), e: flip,
    s: () => {
      surprise.selectedIndex = (surprise.selectedIndex + 1) % 3;
      surprise.dispatchEvent(new Event("change"));
    },
    d: () => $("diff").click(), b: () => $("blind").click(), t: () => theme.click(), "?": () => $("help").click(),
    1: () => vote(0), 2: () => vote(1), 3: () => vote(2), 0: () => vote(3),
    "/": () => $("find").focus(),
  };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input, select")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const act = KEYS[event.key];
    if (act) {
      event.preventDefault();
      act();
    }
  });

  // Style against substance

  const scatter = () => {
    const name = data.substance;
    const points = data.prompts
      .map((prompt) => [prompt, score(prompt, "student", "style_distance"), score(prompt, "student", name)])
      .filter(([, x, y]) => x !== undefined && y !== undefined);
    if (points.length < 6) return;
    const svg = (tag, attributes, ...children) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      element.append(...children);
      return element;
    };
    const [wide, high, edge] = [640, 320, 40];
    const most = Math.max(...points.map(([, x]) => x)) * 1.05 || 1;
    const ys = points.map(([, , y]) => y);
    const [low, top] = [Math.min(...ys), Math.max(...ys)];
    const at = (x, y) => [edge + ((wide - 2 * edge) * x) / most, high - edge - ((high - 2 * edge) * (y - low)) / (top - low || 1)];
    const plot = svg("svg", { viewBox: `0 0 ${wide} ${high}`, role: "img", class: "scatter" });
    plot.setAttribute("aria-label", "Each prompt by distance of style from the teacher and likeness to its answer");
    plot.append(
      svg("line", { class: "grid", x1: edge, x2: wide - edge, y1: high - edge, y2: high - edge }),
      svg("line", { class: "grid", x1: edge, x2: edge, y1: edge, y2: high - edge }),
      svg("text", { x: wide - edge, y: high - 12, "text-anchor": "end" }, "distance from the teacher’s style →"),
      svg("text", { x: edge, y: 24 }, `↑ ${data.titles[name] || name}`),
    );
    for (const [prompt, x, y] of points) {
      const [cx, cy] = at(x, y);
      const point = svg("circle", { class: `point ${prompt.outcome?.value || ""}`, cx, cy, r: 4 });
      point.append(svg("title", {}, `${opening(prompt)}\nstyle ${number(x)}, ${data.titles[name] || name} ${number(y)}`));
      point.addEventListener("click", () => {
        location.hash = `#pair?prompt=${encodeURIComponent(prompt.id)}`;
      });
      plot.append(point);
    }
    $("scatter").append(make("p", { class: "lead" }, `Style against substance, as far as ${data.titles[name] || name} tells it, a point a prompt: to the left it sounds like the teacher, ${name === "nll_per_byte" ? "high" : "low"} it says something else.`), plot);
  };

  scatter();
  tally();
  list();
  $("tools").hidden = false;
  read();
})();
