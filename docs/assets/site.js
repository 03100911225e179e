// A region that scrolls can be reached by the keyboard, once the theme has made it.
new MutationObserver(() => {
  for (const region of document.querySelectorAll(".md-typeset__scrollwrap, .formula")) {
    if (region.scrollWidth > region.clientWidth) region.tabIndex = 0;
  }
}).observe(document.documentElement, { childList: true, subtree: true });
