//! Headers of files.
