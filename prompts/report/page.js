"use strict";
(() => {
  const cards = document.getElementById("cards");
  if (!cards) return;
  const [tools, sort, find, toggle, count] = ["tools", "sort", "find", "toggle", "count"].map((id) =>
    document.getElementById(id),
  );
  const all = Array.from(cards.children);
  const opened = Number(cards.dataset.open);
  const texts = new Map();

  const compare = {
    order: (a, b) => a.dataset.order - b.dataset.order,
    worst: (a, b) => (a.dataset.rouge ?? 2) - (b.dataset.rouge ?? 2) || compare.order(a, b),
    best: (a, b) => (b.dataset.rouge ?? -1) - (a.dataset.rouge ?? -1) || compare.order(a, b),
  };

  const text = (card) => {
    if (!texts.has(card)) texts.set(card, card.textContent.toLowerCase());
    return texts.get(card);
  };

  const label = () => {
    toggle.textContent = all.some((card) => !card.open) ? "Open all" : "Close all";
  };

  sort.addEventListener("change", () => {
    const ordered = [...all].sort(compare[sort.value]);
    ordered.forEach((card, index) => {
      card.open = index < opened;
    });
    cards.replaceChildren(...ordered);
    label();
  });

  find.addEventListener("input", () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const card of all) card.hidden = !words.every((word) => text(card).includes(word));
    const shown = all.filter((card) => !card.hidden).length;
    count.textContent = words.length ? `${shown} of ${all.length}` : "";
  });

  toggle.addEventListener("click", () => {
    const open = all.some((card) => !card.open);
    for (const card of all) card.open = open;
    label();
  });

  label();
  tools.hidden = false;
})();
