//! [`Medium`]: what a tile store asks of the place where its objects are. A folder has it, an object store has it.

use std::io;

use dd_core::Tier;

/// Objects by name. A name is `object` or `folder/object`; a folder is nothing but what the names have in common.
pub(super) trait Medium: Send + Sync {
    /// A name for messages.
    fn place(&self) -> String;

    /// Where the bytes rest.
    fn tier(&self) -> Tier;

    /// An object's bytes; nothing where there is none. One longer than `most` is [`io::ErrorKind::InvalidData`], and is not
    /// read.
    fn read(&self, name: &str, most: u64) -> io::Result<Option<Vec<u8>>>;

    /// Makes an object, whole or not at all. Says `false` where there is one already, which then may have been replaced by
    /// this one if `replace` allows it, and else stays.
    fn write(&self, name: &str, bytes: Vec<u8>, replace: bool) -> io::Result<bool>;

    /// An object's length; nothing where there is none.
    fn length(&self, name: &str) -> io::Result<Option<u64>>;

    /// Calls `visit` with the name (without the folder's) and the length of each object of a folder, until it says `false`.
    fn list(&self, folder: &str, visit: &mut dyn FnMut(&str, u64) -> bool) -> io::Result<()>;

    /// The folders, in any order.
    fn folders(&self) -> io::Result<Vec<String>>;

    /// Removes an object; says whether there was one.
    fn remove(&self, name: &str) -> io::Result<bool>;

    /// Removes what is left of a folder that is empty; nothing where folders are not things.
    fn remove_folder(&self, folder: &str) -> io::Result<()>;

    /// Returns when all that was written would outlive a power cut.
    fn sync(&self) -> io::Result<()>;
}
