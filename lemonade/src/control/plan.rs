//! What changes between two dispatch tables, in an order in which every step is safe.
