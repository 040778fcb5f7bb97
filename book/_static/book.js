// Loaded on every page, because it lies in book/_static. What is wide is fitted or marked; proofs fold; links show
// what they lead to. Without this script the page is whole: boxes scroll, proofs are open, links are links.
(() => {
  "use strict";
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // ---- A display equation wider than its column is set smaller, down to SMALLEST of its size; what is then still
  // wide, code and tables scroll, in a box that shows where there is more and that the keyboard can reach.
  const SMALLEST = 0.78;
  const TEXT = 11; // pixels, the smallest type of printed text
  const BOXES = "div.math, .cell_input pre, .cell_output pre, div.highlight pre, .cell_output .output, " +
    ".pst-scrollable-table-container, span.math";

  const wide = (box) => {
    if (box.tagName !== "SPAN") return box.clientWidth > 0 && box.scrollWidth > box.clientWidth + 1;
    const formula = box.querySelector("mjx-math"), block = box.closest("p, li, dd, td, div");
    return formula && block.clientWidth > 0 && formula.getBoundingClientRect().width > block.clientWidth;
  };

  function fitEquation(box) {
    box.style.fontSize = "";
    if (!wide(box)) return;
    const number = box.querySelector(":scope > .eqno");
    const beside = number && getComputedStyle(box).flexDirection !== "column" ? number.offsetWidth + 8 : 0;
    const content = Math.max(...all("mjx-math", box).map((e) => e.getBoundingClientRect().width), box.scrollWidth - beside);
    for (let k = (box.clientWidth - beside) / content; k >= SMALLEST; k -= 0.02) {
      box.style.fontSize = `${(100 * k).toFixed(1)}%`;
      if (!wide(box)) return;
    }
    box.style.fontSize = "";
  }

  function fitText(box) {
    box.style.fontSize = "";
    if (!wide(box)) return;
    const size = parseFloat(getComputedStyle(box).fontSize);
    const fitted = Math.floor(20 * size * (box.clientWidth - 24) / (box.scrollWidth - 24)) / 20;
    if (fitted >= TEXT) box.style.fontSize = `${fitted}px`;
  }

  function fitTable(table) {
    table.style.fontSize = "";
    const column = table.parentElement;
    if (!column || column.clientWidth === 0 || table.offsetWidth <= column.clientWidth) return;
    const size = parseFloat(getComputedStyle(table).fontSize);
    const fitted = Math.floor(20 * size * column.clientWidth / table.offsetWidth) / 20;
    table.style.fontSize = `${Math.max(fitted, TEXT)}px`;
    if (table.offsetWidth > column.clientWidth) table.style.fontSize = ""; // it scrolls, and may as well be large
  }

  function mark(box) {
    if (!wide(box)) {
      if (box.dataset.more) {
        delete box.dataset.more;
        ["tabindex", "role", "aria-label"].forEach((name) => box.removeAttribute(name));
      }
      return;
    }
    const left = box.scrollLeft > 1;
    const right = box.scrollLeft + box.clientWidth < box.scrollWidth - 1;
    if (!box.dataset.more) {
      box.tabIndex = 0;
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", box.matches(".math") ? "equation, scrolls sideways" : "text, scrolls sideways");
      box.addEventListener("scroll", () => mark(box), { passive: true });
    }
    box.dataset.more = left && right ? "both" : left ? "left" : "right";
  }

  function fit() {
    all("article div.math").forEach(fitEquation);
    all("article .cell_output pre").forEach(fitText);
    all("article table.advdim-table").forEach(fitTable);
    all(BOXES, document.querySelector("article") || document).forEach(mark);
  }

  // ---- Proofs fold, one by one or all at once; the choice for all is kept.
  const KEY = "advdim-proofs";
  const kept = () => { try { return localStorage.getItem(KEY); } catch { return null; } };
  const keep = (value) => { try { localStorage.setItem(KEY, value); } catch { /* private windows */ } };

  function fold(proof, folded) {
    proof.classList.toggle("folded", folded);
    proof.querySelector(".proof-bar button").setAttribute("aria-expanded", String(!folded));
  }

  function foldable() {
    const kinds = "theorem axiom criterion lemma definition remark conjecture corollary example property " +
      "observation proposition assumption notation algorithm";
    const proofs = all("div.proof").filter((e) => !kinds.split(" ").some((kind) => e.classList.contains(kind)));
    const label = () => (kept() === "folded" ? "show all proofs" : "fold all proofs");
    proofs.forEach((proof) => {
      const bar = document.createElement("div");
      bar.className = "proof-bar";
      const own = document.createElement("button");
      own.textContent = "Proof";
      own.onclick = () => fold(proof, !proof.classList.contains("folded"));
      const every = document.createElement("button");
      every.className = "proof-all";
      every.textContent = label();
      every.onclick = () => {
        keep(kept() === "folded" ? "open" : "folded");
        const top = every.getBoundingClientRect().top;
        proofs.forEach((other) => fold(other, kept() === "folded"));
        all(".proof-all").forEach((button) => { button.textContent = label(); });
        window.scrollBy(0, every.getBoundingClientRect().top - top); // the page stays where it was
        fit();
      };
      bar.append(own, every);
      proof.prepend(bar);
      proof.classList.add("fold");
      fold(proof, kept() === "folded");
      const words = document.createTreeWalker(proof.querySelector(".proof-content") || proof, NodeFilter.SHOW_TEXT);
      for (let node = words.nextNode(); node; node = words.nextNode()) {
        if (/^\s*Proof\.\s*/.test(node.data)) { // now said by the button
          node.data = node.data.replace(/^\s*Proof\.\s*/, "");
          break;
        }
        if (node.data.trim() && !bar.contains(node)) break;
      }
    });
    const reveal = () => {
      const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
      const proof = target && target.closest("div.proof.folded");
      if (proof) {
        fold(proof, false);
        target.scrollIntoView();
      }
    };
    window.addEventListener("hashchange", reveal);
    reveal();
  }

  // ---- A link to a theorem, equation, figure, reference or term shows it. Targets on the same page are copied from
  // it; those on others come from previews.js, written by the build, because a page opened from a disk may not fetch.
  const box = document.createElement("div");
  let timer = 0, shownFor = null, others = null;

  const home = () => document.documentElement.dataset.content_root || "./";
  function load() {
    others ??= new Promise((done) => {
      const script = document.createElement("script");
      script.src = `${home()}_static/previews/all.js`;
      script.onload = () => done(window.bookPreviews || {});
      script.onerror = () => done({});
      document.head.append(script);
    });
    return others;
  }

  function strip(element) {
    const copy = element.cloneNode(true);
    all("[id]", copy).forEach((e) => e.removeAttribute("id"));
    copy.removeAttribute("id");
    all("script, .headerlink, .proof-bar", copy).forEach((e) => e.remove());
    return copy;
  }

  async function content(link) {
    const url = new URL(link.href, location.href);
    const id = decodeURIComponent(url.hash.slice(1));
    if (!id) return null;
    if (url.pathname === location.pathname) {
      const target = document.getElementById(id);
      if (!target) return null;
      const what = target.matches("dt") ? target.nextElementSibling : target.matches("span:empty")
        ? target.nextElementSibling || target.parentElement : target;
      return what && what.matches("div.proof, div.math, figure, dd, div.citation, div.admonition, tr") ? strip(what) : null;
    }
    const name = url.pathname.split("/").pop();
    const html = (await load())[`${name}#${id}`];
    if (!html) return null;
    const made = document.createElement("div");
    made.innerHTML = html;
    return made;
  }

  async function show(link) {
    const made = await content(link);
    if (!made || shownFor !== link) return;
    box.replaceChildren(made);
    box.hidden = false;
    if (window.MathJax && MathJax.typesetPromise && !made.querySelector("mjx-container")) {
      try { await MathJax.typesetPromise([box]); } catch { /* shown as it is written */ }
    }
    const at = link.getBoundingClientRect(), size = box.getBoundingClientRect();
    const below = at.bottom + size.height + 8 < window.innerHeight || at.top < size.height + 8;
    box.style.left = `${window.scrollX + Math.max(8, Math.min(at.left, window.innerWidth - size.width - 24))}px`;
    box.style.top = `${window.scrollY + (below ? at.bottom + 4 : at.top - size.height - 4)}px`;
  }

  const hide = () => { shownFor = null; box.hidden = true; };
  const later = (what, wait) => { clearTimeout(timer); timer = setTimeout(what, wait); };

  function previews() {
    box.id = "book-preview";
    box.hidden = true;
    box.setAttribute("role", "tooltip");
    document.body.append(box);
    const links = "article a.reference.internal[href*='#'], article a.reference.internal[href^='#']";
    const of = (event) => event.target.closest && event.target.closest(links);
    const enter = (event) => {
      const link = of(event);
      if (link && link !== shownFor && matchMedia("(hover: hover)").matches) {
        later(() => { shownFor = link; show(link); }, event.type === "focusin" ? 0 : 250);
      }
      else if (link || box.contains(event.target)) clearTimeout(timer);
    };
    document.addEventListener("mouseover", enter);
    document.addEventListener("focusin", (event) => event.target.matches(":focus-visible") && enter(event));
    document.addEventListener("mouseout", (event) => {
      if (of(event) || box.contains(event.target)) later(hide, 300);
    });
    document.addEventListener("focusout", (event) => of(event) && later(hide, 100));
    document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  }

  // ---- Paper is white, whatever the screen is.
  let mode = null;
  window.addEventListener("beforeprint", () => {
    mode = document.documentElement.dataset.theme;
    document.documentElement.dataset.theme = "light";
  });
  window.addEventListener("afterprint", () => { if (mode) document.documentElement.dataset.theme = mode; });

  // ---- Equations are measured when they are set, and again when the column changes or a fold opens.
  document.addEventListener("DOMContentLoaded", () => {
    foldable();
    previews();
    fit();
  });
  window.addEventListener("load", async () => {
    if (window.MathJax && MathJax.startup && MathJax.startup.promise) await MathJax.startup.promise;
    fit();
    document.documentElement.dataset.fitted = "yes"; // for who measures the page
    const article = document.querySelector("article");
    if (!article) return;
    let width = article.clientWidth, planned = false;
    new ResizeObserver(() => {
      if (planned || article.clientWidth === width) return;
      planned = true;
      requestAnimationFrame(() => { planned = false; width = article.clientWidth; fit(); });
    }).observe(article);
    document.addEventListener("book-fit", fit); // from who prints the page
    document.addEventListener("toggle", fit, true);
    document.addEventListener("click", () => setTimeout(fit, 50)); // folds that are not details
  });
})();
