//! XLA.
