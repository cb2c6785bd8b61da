//! What accounts of one region and rows of another do together, a file a saga: each action beside its undo.

pub(super) mod email;
