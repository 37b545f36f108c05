//! The empty program: what `BPF_PROG_TEST_RUN` itself costs, to be taken off
//! what a program costs.
#![expect(unsafe_code, reason = "bpf(2) with two structs of its union attr")]

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};

/// `BPF_PROG_LOAD` of `union bpf_attr` (include/uapi/linux/bpf.h).
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    rest: [u8; 120],
}

/// `BPF_PROG_TEST_RUN` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Run {
    program: u32,
    returned: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    rest: [u64; 4],
}

/// A classifier that returns `TCX_NEXT` at once.
#[derive(Debug)]
pub struct Empty(File);

impl Empty {
    pub fn load() -> Self {
        const PROG_LOAD: i64 = 5;
        const SCHED_CLS: u32 = 3;
        // r0 = -1; exit
        let code: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
        let attr = Load {
            kind: SCHED_CLS,
            instructions: 2,
            code: code.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            rest: [0; 120],
        };
        let fd = bpf(PROG_LOAD, &attr);
        // SAFETY: a new descriptor that nobody else owns.
        Self(unsafe { File::from_raw_fd(i32::try_from(fd).expect("a descriptor")) })
    }

    /// Nanoseconds per run, over `repeat` runs.
    pub fn time(&self, frame: &[u8], repeat: u32) -> f64 {
        const PROG_TEST_RUN: i64 = 10;
        let attr = Run {
            program: u32::try_from(self.0.as_raw_fd()).expect("a descriptor"),
            data_size_in: u32::try_from(frame.len()).expect("a frame"),
            data_in: frame.as_ptr() as u64,
            repeat,
            ..Run::default()
        };
        bpf(PROG_TEST_RUN, &attr);
        // SAFETY: the kernel has written the field behind the reference's back.
        f64::from(unsafe { std::ptr::read_volatile(&raw const attr.duration) })
    }
}

/// # Panics
/// If the system call fails.
fn bpf<T>(command: i64, attr: &T) -> i64 {
    // SAFETY: `attr` is a live struct of the size told, its pointers valid for the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attr, size_of::<T>()) };
    assert!(
        result >= 0,
        "bpf({command}): {}",
        std::io::Error::last_os_error()
    );
    result
}
