//! The console at `/`: one page, its style and its scripts, all from this process and nothing fetched from elsewhere.

/// `/`
pub(super) const HTML: &str = include_str!("index.html");

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// What the page needs: path, content type, content.
pub(super) const FILES: [(&str, &str, &str); 5] = [
    ("/console/console.css", "text/css; charset=utf-8", include_str!("console.css")),
    ("/console/console.js", SCRIPT, include_str!("console.js")),
    ("/console/api.js", SCRIPT, include_str!("api.js")),
    ("/console/views.js", SCRIPT, include_str!("views.js")),
    ("/console/actions.js", SCRIPT, include_str!("actions.js")),
];
