//! The test harness: namespaces, processes and packets that the tests share.
