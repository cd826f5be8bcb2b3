//! Networks under their public state-dict names, one file or folder per family.

pub mod adm;
