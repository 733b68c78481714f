//! Memory that may not be there. Collections of the standard library end the process then; what grows
//! with a caller's input is asked for here first, so that its absence is a status.

use crate::error::{Error, Result, Status};

/// `count` zeros.
pub(crate) fn zeros<T: Copy + Default>(count: usize) -> Result<Vec<T>> {
    let mut list = list(count)?;
    list.resize(count, T::default());
    Ok(list)
}

/// An empty list with room for `count` elements.
pub(crate) fn list<T>(count: usize) -> Result<Vec<T>> {
    let mut list = Vec::new();
    list.try_reserve_exact(count).map_err(|error| {
        let bytes = count.saturating_mul(size_of::<T>());
        Error::new(Status::OutOfMemory, format!("{bytes} bytes: {error}"))
    })?;
    Ok(list)
}

/// Takes `bytes` at once and gives them back: for collections, and libraries, that take at most as many
/// in pieces and cannot say that there are none.
pub(crate) fn room(bytes: usize) -> Result<()> {
    // The compiler may not leave out an allocation that is looked at.
    std::hint::black_box(list::<u8>(bytes)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_a_status() {
        assert_eq!(zeros::<f32>(3).unwrap(), [0.0; 3]);
        room(1 << 20).unwrap();
        for count in [usize::MAX / 8, usize::MAX] {
            let error = list::<u64>(count).unwrap_err();
            assert_eq!(error.status(), Status::OutOfMemory, "{error}");
        }
        let error = room(usize::MAX >> 1).unwrap_err();
        assert_eq!(error.status(), Status::OutOfMemory, "{error}");
    }
}
