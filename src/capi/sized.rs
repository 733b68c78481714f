//! Structs that grow: each begins with its own size as the caller compiled it. A shorter struct is
//! extended by zeros, a longer one is accepted if what this version does not know is zero.

use super::null;
use crate::error::{Error, Result, Status};

/// A struct of the C ABI.
///
/// # Safety
/// The type is `repr(C)`, begins with a `usize` named `struct_size`, and all-zero bytes are a
/// valid value.
pub(super) unsafe trait CStruct: Copy {
    /// In messages.
    const NAME: &'static str;
    /// Size in the first version that had it; never raised.
    const FIRST_SIZE: usize;
}

/// Reads an input struct.
///
/// # Safety
/// `input` is null or points to `struct_size` bytes.
pub(super) unsafe fn read<T: CStruct>(input: *const T, name: &str) -> Result<T> {
    // SAFETY: the caller's promise.
    let size = unsafe { size_of_caller(input, name) }?;
    let known = size.min(size_of::<T>());
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: both sides have `known` bytes; zeros and any bytes of C are valid for the type.
    let value = unsafe {
        std::ptr::copy_nonoverlapping(input.cast::<u8>(), value.as_mut_ptr().cast(), known);
        value.assume_init()
    };
    for at in known..size {
        // SAFETY: inside the caller's struct.
        if unsafe { *input.cast::<u8>().add(at) } != 0 {
            return Err(Error::new(
                Status::StructSize,
                format!(
                    "{name}: {} has {size} bytes, this library knows {}, and byte {at} is not 0: \
                     the caller was built for a newer version and uses it",
                    T::NAME,
                    size_of::<T>()
                ),
            ));
        }
    }
    Ok(value)
}

/// Writes an output struct into what the caller has room for, keeping its `struct_size`.
///
/// # Safety
/// `output` is null or points to `struct_size` writable bytes.
pub(super) unsafe fn write<T: CStruct>(output: *mut T, name: &str, value: &T) -> Result<()> {
    // SAFETY: the caller's promise.
    let size = unsafe { size_of_caller(output, name) }?;
    let known = size.min(size_of::<T>());
    let head = size_of::<usize>();
    // SAFETY: inside both structs; what this version does not know becomes 0.
    unsafe {
        let to = output.cast::<u8>();
        let from = std::ptr::from_ref(value).cast::<u8>();
        std::ptr::copy_nonoverlapping(from.add(head), to.add(head), known - head);
        std::ptr::write_bytes(to.add(known), 0, size - known);
    }
    Ok(())
}

/// Reads element `index` of an array of structs, which all have the size that the first one says.
///
/// # Safety
/// `first` is null or points to that many structs of that size.
pub(super) unsafe fn read_element<T: CStruct>(
    first: *const T,
    index: usize,
    name: &str,
) -> Result<T> {
    // SAFETY: the caller's promise.
    let size = unsafe { size_of_caller(first, name) }?;
    let element = first.wrapping_byte_add(index * size);
    // SAFETY: as above.
    let value = unsafe { read(element, &format!("{name}[{index}]")) }?;
    // SAFETY: `read` has seen it.
    let own = unsafe { element.cast::<usize>().read() };
    if own != size {
        return Err(Error::new(
            Status::StructSize,
            format!("{name}[{index}]: struct_size is {own}, but {name}[0] has {size}"),
        ));
    }
    Ok(value)
}

/// The `struct_size` of a caller's struct, checked.
///
/// # Safety
/// `pointer` is null or points to at least a `struct_size`.
pub(super) unsafe fn size_of_caller<T: CStruct>(pointer: *const T, name: &str) -> Result<usize> {
    if pointer.is_null() {
        return Err(null(name));
    }
    if !pointer.is_aligned() {
        return Err(Error::new(
            Status::Misaligned,
            format!("{name} is at {pointer:p}"),
        ));
    }
    // SAFETY: aligned, and every struct begins with its size.
    let size = unsafe { pointer.cast::<usize>().read() };
    // A size nobody will ever need is an uninitialised struct.
    if size < T::FIRST_SIZE || size > 1 << 16 {
        return Err(Error::new(
            Status::StructSize,
            format!(
                "{name}: struct_size is {size}; {} has at least {} (use its INIT macro)",
                T::NAME,
                T::FIRST_SIZE
            ),
        ));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Now {
        struct_size: usize,
        a: i64,
        b: i64,
    }

    // SAFETY: repr(C), size first, integers.
    unsafe impl CStruct for Now {
        const NAME: &'static str = "now_t";
        const FIRST_SIZE: usize = 16;
    }

    #[test]
    fn a_struct_of_the_first_version_is_extended_by_zeros() {
        let old = [16_usize, 7, 99];
        // SAFETY: 16 bytes are there.
        let now = unsafe { read(old.as_ptr().cast::<Now>(), "x") }.unwrap();
        assert_eq!((now.struct_size, now.a, now.b), (16, 7, 0));
    }

    #[test]
    fn a_newer_struct_is_read_if_its_tail_is_zero() {
        let mut newer = [32_usize, 1, 2, 0];
        // SAFETY: 32 bytes are there.
        let now = unsafe { read(newer.as_ptr().cast::<Now>(), "x") }.unwrap();
        assert_eq!((now.a, now.b), (1, 2));
        newer[3] = 1;
        // SAFETY: as above.
        let error = unsafe { read(newer.as_ptr().cast::<Now>(), "x") }
            .err()
            .unwrap();
        assert_eq!(error.status(), Status::StructSize);
        assert!(error.to_string().contains("byte 24"), "{error}");
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        for size in [0_usize, 8, 15, usize::MAX] {
            let bad = [size, 0, 0];
            // SAFETY: the size is refused before more is read.
            let error = unsafe { read(bad.as_ptr().cast::<Now>(), "x") }
                .err()
                .unwrap();
            assert_eq!(error.status(), Status::StructSize, "{size}");
        }
    }

    #[test]
    fn outputs_fill_what_the_caller_has() {
        let value = Now {
            struct_size: 24,
            a: 5,
            b: 6,
        };
        let mut small = [16_usize, 0, 77];
        let mut large = [40_usize, 0, 0, 88, 88];
        // SAFETY: sizes are true.
        unsafe {
            write(small.as_mut_ptr().cast::<Now>(), "x", &value).unwrap();
            write(large.as_mut_ptr().cast::<Now>(), "x", &value).unwrap();
        }
        assert_eq!(small, [16, 5, 77]);
        assert_eq!(large, [40, 5, 6, 0, 0]);
    }

    #[test]
    fn elements_of_an_array_have_one_size() {
        let list = [16_usize, 1, 16, 2, 24, 3, 0];
        let first = list.as_ptr().cast::<Now>();
        // SAFETY: as many bytes as the sizes say.
        unsafe {
            assert_eq!(read_element(first, 1, "list").unwrap().a, 2);
            let error = read_element(first, 2, "list").err().unwrap();
            assert_eq!(error.status(), Status::StructSize);
        }
    }
}
