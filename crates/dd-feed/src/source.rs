//! Sources that are ready to use: folders of files, memory-mapped records, `.npy` files, safetensors rows. Whatever else can be read
//! anywhere is a [`Listed`](crate::Listed) with a function; whatever only reads forward is a
//! [`ForwardSource`](crate::ForwardSource).
//!
//! Arrow and Parquet are not here. The crates that read them well (`arrow`, `parquet`) bring fifty to a hundred others with them and take
//! minutes to build, more than all of this crate; a program that uses them anyway needs ten lines: `ForwardSource::from_blocks`
//! with a row group as the block.
//!
//! Mapped files must not be cut while they are in use: their length is checked when they are opened, and a system that finds a mapped
//! page gone ends the program. Mapped bytes are the page cache's, not the budget's: the system takes them back when memory is short.

mod folder;
mod map;
mod mapped;
mod npy;
mod tensors;

pub use folder::FolderSource;
pub use mapped::MappedRows;
