"use strict";
// Loads the page again once it has changed on the server.
(() => {
  let seen = null;
  setInterval(async () => {
    try {
      const answer = await fetch(location.href, {method: "HEAD", cache: "no-store"});
      const now = answer.headers.get("Last-Modified");
      if (seen !== null && now !== seen) location.reload();
      seen = now;
    } catch {
      // The server has ended: the page stays as it is.
    }
  }, 2000);
})();
