//! Reads that run side by side, and fail as if they had run one after another: which error is answered never depends on
//! which read ended first.

/// Results of reads that ran side by side.
pub trait InOrder {
    /// All values.
    type Values;
    /// Why one failed.
    type Error;
    /// The values, or the first error in the order that the reads were named.
    fn in_order(self) -> Result<Self::Values, Self::Error>;
}

impl<A, B, E> InOrder for (Result<A, E>, Result<B, E>) {
    type Values = (A, B);
    type Error = E;
    fn in_order(self) -> Result<(A, B), E> {
        Ok((self.0?, self.1?))
    }
}

impl<A, B, C, E> InOrder for (Result<A, E>, Result<B, E>, Result<C, E>) {
    type Values = (A, B, C);
    type Error = E;
    fn in_order(self) -> Result<(A, B, C), E> {
        Ok((self.0?, self.1?, self.2?))
    }
}

impl<A, B, C, D, E> InOrder for (Result<A, E>, Result<B, E>, Result<C, E>, Result<D, E>) {
    type Values = (A, B, C, D);
    type Error = E;
    fn in_order(self) -> Result<(A, B, C, D), E> {
        Ok((self.0?, self.1?, self.2?, self.3?))
    }
}
