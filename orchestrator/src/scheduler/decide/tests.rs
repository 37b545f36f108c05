//! Decisions on hand-made clusters, and against a naive reading of the rules.
