//! The handle table. A handle looks like a pointer to the program, but is a number that no address can have; looking it
//! up is the only thing done with it, so that a destroyed or invented handle gives an error and never a crash.

use crate::error::{Error, Result};
use crate::ffi::Handle;
use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

/// Upper bits of every handle: outside the canonical addresses of x86-64, so that a program that follows one faults
/// there instead of reading something.
const TAG: usize = 0x7074_7800_0000_0000;

type Object = Arc<dyn Any + Send + Sync>;

static OBJECTS: LazyLock<RwLock<HashMap<Handle, Object>>> = LazyLock::new(RwLock::default);
static SERIAL: AtomicUsize = AtomicUsize::new(1);

/// A number that was never a handle before.
pub fn reserve() -> Handle {
    Handle(TAG | SERIAL.fetch_add(1, Ordering::Relaxed) << 4)
}

/// Makes a reserved number the handle of an object.
pub fn bind<T: Any + Send + Sync>(handle: Handle, object: Arc<T>) {
    OBJECTS.write().unwrap_or_else(PoisonError::into_inner).insert(handle, object);
}

/// A new handle for an object.
pub fn insert<T: Any + Send + Sync>(object: Arc<T>) -> Handle {
    let handle = reserve();
    bind(handle, object);
    handle
}

/// The object of a handle, if there is one of that type.
pub fn find<T: Any + Send + Sync>(handle: Handle) -> Option<Arc<T>> {
    let object = OBJECTS.read().unwrap_or_else(PoisonError::into_inner).get(&handle).cloned()?;
    object.downcast().ok()
}

/// The object of a handle; `INVALID_HANDLE` if it was destroyed, is of another type, or never was one.
pub fn get<T: Any + Send + Sync>(handle: Handle) -> Result<Arc<T>> {
    find(handle).ok_or(Error::INVALID_HANDLE)
}

/// Forgets a handle and returns its object.
pub fn take<T: Any + Send + Sync>(handle: Handle) -> Result<Arc<T>> {
    let mut objects = OBJECTS.write().unwrap_or_else(PoisonError::into_inner);
    let object = objects.get(&handle).cloned().ok_or(Error::INVALID_HANDLE)?;
    let object = object.downcast().map_err(|_| Error::INVALID_HANDLE)?;
    objects.remove(&handle);
    Ok(object)
}

/// Forgets a handle of any type.
pub fn forget(handle: Handle) {
    let object = OBJECTS.write().unwrap_or_else(PoisonError::into_inner).remove(&handle);
    // Dropped after the table's lock: an object may itself forget others.
    drop(object);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destroyed_and_invented_handles_are_errors() {
        let handle = insert(Arc::new(7u8));
        assert_eq!(*get::<u8>(handle).expect("there"), 7);
        assert_eq!(get::<u16>(handle).err(), Some(Error::INVALID_HANDLE), "another type");
        assert_eq!(take::<u16>(handle).err(), Some(Error::INVALID_HANDLE));
        assert_eq!(*take::<u8>(handle).expect("there"), 7);
        assert_eq!(get::<u8>(handle).err(), Some(Error::INVALID_HANDLE));
        assert_eq!(take::<u8>(handle).err(), Some(Error::INVALID_HANDLE));
        assert_eq!(get::<u8>(Handle(0x1234)).err(), Some(Error::INVALID_HANDLE));
        assert_ne!(insert(Arc::new(7u8)), handle, "never reused");
    }
}
