//! Properties follow.
