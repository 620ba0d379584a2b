//! Layers: each wraps a disk and is one.
//!
//! [`overlay`] keeps what is written apart from the disk below. The others are for trying things
//! out: [`delay`], [`fault`], [`log`] and [`check_writes`]; [`spec`] makes them from a text.

pub mod check_writes;
pub mod delay;
pub mod fault;
pub mod log;
pub mod overlay;
pub mod spec;

/// A wrapper's methods that just ask the disk below.
macro_rules! pass {
    ($($name:ident),*) => { $( $crate::layers::pass!(@ $name); )* };
    (@ geometry) => { fn geometry(&self) -> $crate::Geometry { self.lower.geometry() } };
    (@ ready) => {
        fn ready(&self, at: u64, len: u64) -> bool { self.lower.ready(at, len) }
    };
    (@ write_ready) => {
        fn write_ready(&self, at: u64, len: u64) -> bool { self.lower.write_ready(at, len) }
    };
    (@ prefetch) => {
        fn prefetch(&self, at: u64, len: u64) -> $crate::Result<()> { self.lower.prefetch(at, len) }
    };
    (@ extents) => {
        fn extents(&self, at: u64, len: u64, most: usize) -> $crate::Result<Vec<$crate::Extent>> {
            self.lower.extents(at, len, most)
        }
    };
    (@ changes_since) => {
        fn changes_since(&self, point: &str) -> $crate::Result<Arc<dyn $crate::Changes>> {
            self.lower.changes_since(point)
        }
    };
    (@ resize) => {
        fn resize(&self, size: u64) -> $crate::Result<()> { self.lower.resize(size) }
    };
}
pub(crate) use pass;
