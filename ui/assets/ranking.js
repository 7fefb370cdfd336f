// Ranks for four to nine answers: a row of numbers on each; the same number twice is a tie.

import { make } from "./desk.js";

const LETTERS = "ABCDEFGHI";

export class Ranking {
  constructor(desk) {
    this.desk = desk;
    this.ranks = [];
    this.active = 0;
    desk.get("submit-ranks").addEventListener("click", () => this.submit());
  }

  show(count) {
    this.ranks = Array(count).fill(null);
    this.cards = [...this.desk.element.querySelectorAll(".answer")];
    this.cards.forEach((card, place) => {
      card.querySelector("header").append(this.numbers(place, count));
      card.addEventListener("focusin", () => this.mark(place));
    });
    this.mark(0);
    this.refresh();
  }

  numbers(place, count) {
    const label = `Rank of answer ${LETTERS[place]}, 1 is best`;
    const group = make("div", { class: "ranks", role: "radiogroup", "aria-label": label });
    for (let rank = 1; rank <= count; rank += 1) {
      const button = make("button", { type: "button", role: "radio", "aria-checked": "false" }, String(rank));
      button.addEventListener("click", () => this.set(place, rank));
      group.append(button);
    }
    group.addEventListener("keydown", (event) => this.arrow(event, place));
    return group;
  }

  // A group of radio buttons is one stop for Tab; the arrows move inside.
  arrow(event, place) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const count = this.ranks.length;
    const rank = (((this.ranks[place] ?? (step > 0 ? 0 : 1)) - 1 + step + count) % count) + 1;
    this.set(place, rank);
    this.buttons(place)[rank - 1].focus();
  }

  buttons(place) {
    return [...this.cards[place].querySelectorAll(".ranks button")];
  }

  set(place, rank) {
    if (this.desk.busy) return;
    this.ranks[place] = rank;
    this.mark(place);
    this.refresh();
  }

  mark(place) {
    this.active = place;
    this.cards.forEach((card, other) => card.classList.toggle("active", other === place));
  }

  refresh() {
    this.ranks.forEach((chosen, place) => {
      this.buttons(place).forEach((button, index) => {
        button.setAttribute("aria-checked", String(index + 1 === chosen));
        button.tabIndex = index + 1 === (chosen ?? 1) ? 0 : -1;
      });
    });
    this.desk.get("order").textContent = this.inWords();
    this.desk.get("submit-ranks").disabled = this.desk.busy || this.ranks.includes(null);
  }

  inWords() {
    const groups = new Map();
    this.ranks.forEach((rank, place) => {
      if (rank !== null) groups.set(rank, [...(groups.get(rank) || []), LETTERS[place]]);
    });
    const order = [...groups.keys()].sort((a, b) => a - b).map((rank) => groups.get(rank).join(" = "));
    const missing = this.ranks.filter((rank) => rank === null).length;
    if (missing === this.ranks.length) return "Give each answer a rank; 1 is best.";
    return missing ? `${order.join(" > ")} · ${missing} to go` : order.join(" > ");
  }

  key(key, event) {
    const place = LETTERS.toLowerCase().indexOf(key);
    const rank = Number(key);
    if (key.length === 1 && place >= 0 && place < this.ranks.length) {
      this.go(place);
    } else if (rank >= 1 && rank <= this.ranks.length) {
      this.set(this.active, rank);
      const open = this.ranks.findIndex((each, other) => each === null && other > this.active);
      const any = open >= 0 ? open : this.ranks.indexOf(null);
      if (any >= 0) this.go(any);
    } else if (key === "enter" && !event.target.closest("button:not([role=radio]), a, summary")) {
      this.submit();
    } else {
      return false;
    }
    return true;
  }

  go(place) {
    this.mark(place);
    this.cards[place].scrollIntoView({ block: "nearest" });
    const buttons = this.buttons(place);
    buttons[(this.ranks[place] ?? 1) - 1].focus({ preventScroll: true });
  }

  submit() {
    if (!this.ranks.includes(null)) this.desk.vote(null, this.ranks);
  }
}
