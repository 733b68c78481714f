//! The bytes of one buffer of a plan, in their order, from the files that have parts of it.

use super::place::Place;
use super::read::Checkpoint;
use crate::error::Result;
use crate::layout::index;
use crate::reserve::zeros;

/// The most that is read at a time of a file whose runs are short.
const WINDOW: usize = 1 << 20;

/// Runs from this length on are read where they go.
const LONG: usize = 1 << 16;

/// A box that one buffer of one file has. Boxes are in bytes.
pub(super) struct Piece {
    pub(super) member: usize,
    pub(super) buffer: usize,
    /// What the file has.
    pub(super) source: Place,
    /// What is taken of it.
    pub(super) shared: Place,
}

/// Fills consecutive ranges of a target buffer.
pub(super) struct Gather<'a> {
    from: &'a Checkpoint<'a>,
    cursors: Vec<Cursor>,
    /// The next byte of the target.
    at: usize,
}

/// Goes through the runs of a piece: bytes that are neighbours in the file and in the target.
struct Cursor {
    piece: Piece,
    /// Bytes of a run.
    run: usize,
    /// Extents of the axes outside of a run, with the distances of neighbours in file and target.
    outer: Vec<(i64, i64, i64)>,
    /// Index of the next run along those axes; `None` when all are done.
    index: Option<Vec<i64>>,
    /// First byte of the next run, in file and target.
    source: i64,
    target: i64,
    /// Bytes of it that are done.
    done: usize,
    window: Vec<u8>,
    window_at: u64,
}

impl<'a> Gather<'a> {
    pub(super) fn new(from: &'a Checkpoint<'a>, target: Place, pieces: Vec<Piece>) -> Self {
        let cursors = pieces
            .into_iter()
            .map(|piece| Cursor::new(piece, &target))
            .collect();
        Self {
            from,
            cursors,
            at: 0,
        }
    }

    pub(super) fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.cursors.iter().map(|cursor| &cursor.piece)
    }

    /// The file and buffer that the target is a copy of, if it is of one.
    pub(super) fn copy_of(&self) -> Option<(usize, usize)> {
        match self.cursors.as_slice() {
            [only] if only.outer.is_empty() && only.piece.source == only.piece.shared => {
                Some((only.piece.member, only.piece.buffer))
            }
            _ => None,
        }
    }

    /// The next bytes of the target.
    pub(super) fn fill(&mut self, into: &mut [u8]) -> Result<()> {
        // What is read ahead of short runs, over all files.
        let window = (8 * WINDOW / self.cursors.len().max(1)).min(WINDOW);
        for cursor in &mut self.cursors {
            cursor.fill(self.from, self.at, window, into)?;
        }
        self.at += into.len();
        Ok(())
    }
}

impl Cursor {
    fn new(piece: Piece, target: &Place) -> Self {
        let (shared, source) = (&piece.shared, &piece.source);
        let axes = shared.shape.len();
        let strides = |place: &Place| {
            let mut strides = vec![1; axes];
            for axis in (0..axes - 1).rev() {
                strides[axis] = strides[axis + 1] * place.shape[axis + 1];
            }
            strides
        };
        let (from, to) = (strides(source), strides(target));
        let first = |place: &Place, strides: &[i64]| -> i64 {
            let starts = shared.offset.iter().zip(&place.offset);
            starts.zip(strides).map(|((a, b), s)| (a - b) * s).sum()
        };
        // A run takes in an axis while all inner ones are whole on both sides.
        let mut inner = axes - 1;
        let whole = |axis: usize| {
            shared.shape[axis] == source.shape[axis] && shared.shape[axis] == target.shape[axis]
        };
        while inner > 0 && whole(inner) {
            inner -= 1;
        }
        let run = index(shared.shape[inner..].iter().product());
        let outer: Vec<_> = (0..inner)
            .map(|axis| (shared.shape[axis], from[axis], to[axis]))
            .filter(|(extent, ..)| *extent != 1)
            .collect();
        Self {
            run,
            index: Some(vec![0; outer.len()]),
            source: first(source, &from),
            target: first(target, &to),
            outer,
            done: 0,
            window: Vec::new(),
            window_at: 0,
            piece,
        }
    }

    /// Copies what this piece has of the target's bytes `at .. at + into.len()`.
    fn fill(
        &mut self,
        from: &Checkpoint<'_>,
        at: usize,
        window: usize,
        into: &mut [u8],
    ) -> Result<()> {
        while self.index.is_some() {
            // Runs come in the target's order, and ranges too.
            let start = index(self.target) + self.done - at;
            if start >= into.len() {
                return Ok(());
            }
            let bytes = (self.run - self.done).min(into.len() - start);
            self.read(from, window, &mut into[start..start + bytes])?;
            self.done += bytes;
            if self.done == self.run {
                self.advance();
            }
        }
        Ok(())
    }

    fn advance(&mut self) {
        self.done = 0;
        let Some(counters) = &mut self.index else {
            return;
        };
        for (counter, (extent, source, target)) in counters.iter_mut().zip(&self.outer).rev() {
            *counter += 1;
            self.source += *source;
            self.target += *target;
            if *counter < *extent {
                return;
            }
            *counter = 0;
            self.source -= *extent * *source;
            self.target -= *extent * *target;
        }
        self.index = None;
    }

    /// Reads from where the cursor is.
    fn read(&mut self, from: &Checkpoint<'_>, window: usize, into: &mut [u8]) -> Result<()> {
        let member = &from.members[self.piece.member];
        let start = member.start(self.piece.buffer) + (index(self.source) + self.done) as u64;
        // Runs that are long, or far apart, are read alone.
        let apart = self.outer.last().map_or(0, |(_, source, _)| index(*source));
        if self.run >= LONG || apart > 16 * self.run || apart == 0 {
            return member.source.read_at(start, into);
        }
        let end = start + into.len() as u64;
        if start < self.window_at || end > self.window_at + self.window.len() as u64 {
            let buffer = &member.opened.plan.buffers[self.piece.buffer];
            let last = member.start(self.piece.buffer) + index(buffer.bytes) as u64;
            let bytes = (window.max(into.len()) as u64).min(last - start) as usize;
            if self.window.len() < bytes {
                self.window = zeros(bytes)?;
            }
            self.window.truncate(bytes);
            member.source.read_at(start, &mut self.window)?;
            self.window_at = start;
        }
        let skip = (start - self.window_at) as usize;
        into.copy_from_slice(&self.window[skip..skip + into.len()]);
        Ok(())
    }
}
