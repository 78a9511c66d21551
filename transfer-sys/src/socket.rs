//! Sockets: vectored I/O on raw ranges, file descriptors in messages, who is at the other end.
#![allow(unsafe_code, reason = "readv, recv, send, sendmsg, recvmsg and getsockopt")]

use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::{OsError, OsResult, RawRange};

/// The process at the other end of a Unix socket, as the kernel vouches for it (SO_PEERCRED, unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Credentials {
    /// Process number, in our PID namespace; 0 where it has none there.
    pub pid: i32,
    /// User.
    pub uid: u32,
}

/// Credentials of the process that connected to, or listens at, a Unix socket.
///
/// # Errors
/// [`OsError`] of getsockopt.
pub fn peer_credentials(socket: BorrowedFd<'_>) -> OsResult<Credentials> {
    let mut cred = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = socklen(size_of::<libc::ucred>());
    let (level, name) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
    // SAFETY: buffer and length describe `cred`.
    let rc =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut cred).cast(), &raw mut len) };
    if rc != 0 {
        return Err(OsError::last("getsockopt", "SO_PEERCRED"));
    }
    Ok(Credentials { pid: cred.pid, uid: cred.uid })
}

/// Reads into the ranges, in order; returns the bytes read, 0 at the end of the stream.
/// At most 1024 ranges are looked at (`IOV_MAX`). Cost: one syscall, no allocation.
///
/// # Errors
/// [`OsError`] of readv or recv; [`OsError::would_block`] where there is nothing yet.
///
/// # Safety
/// The ranges must be mapped and writable through the call and not be borrowed by safe code.
pub unsafe fn read_ranges(socket: BorrowedFd<'_>, ranges: &[RawRange]) -> OsResult<usize> {
    if let [range] = ranges {
        // The kernel has less to look at.
        // SAFETY: the range is the caller's contract.
        let n = unsafe { libc::recv(socket.as_raw_fd(), range.addr().cast(), range.len(), 0) };
        return usize::try_from(n).map_err(|_| OsError::last("recv", "socket"));
    }
    let count =
        libc::c_int::try_from(ranges.len().min(crate::process::RANGES_MAX)).unwrap_or(libc::c_int::MAX);
    // SAFETY: a RawRange is laid out as an iovec; the bytes are the caller's contract.
    let n = unsafe { libc::readv(socket.as_raw_fd(), ranges.as_ptr().cast(), count) };
    usize::try_from(n).map_err(|_| OsError::last("readv", "socket"))
}

/// Writes the ranges, in order; returns the bytes that the kernel took. Never raises SIGPIPE.
/// At most 1024 ranges are looked at. Cost: one syscall, no allocation.
///
/// # Errors
/// [`OsError`] of sendmsg or send; [`OsError::would_block`] where the socket's buffer is full.
///
/// # Safety
/// The ranges must be mapped through the call.
pub unsafe fn write_ranges(socket: BorrowedFd<'_>, ranges: &[RawRange]) -> OsResult<usize> {
    if let [range] = ranges {
        let (bytes, flags) = (range.addr().cast_const().cast(), libc::MSG_NOSIGNAL);
        // SAFETY: the range is the caller's contract.
        let n = unsafe { libc::send(socket.as_raw_fd(), bytes, range.len(), flags) };
        return usize::try_from(n).map_err(|_| OsError::last("send", "socket"));
    }
    let mut message = message(ranges);
    // SAFETY: the message points at `ranges`, which live through the call; the bytes are the caller's contract.
    let n = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_NOSIGNAL) };
    usize::try_from(n).map_err(|_| OsError::last("sendmsg", "socket"))
}

fn message(ranges: &[RawRange]) -> libc::msghdr {
    // SAFETY: all-zero bytes are a valid msghdr (null pointers and zero lengths).
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = ranges.as_ptr().cast_mut().cast();
    message.msg_iovlen = ranges.len().min(crate::process::RANGES_MAX) as _;
    message
}

/// A control message with one descriptor, laid out as `CMSG_FIRSTHDR` and `CMSG_DATA` would find it (cmsg(3)).
#[repr(C)]
struct FdMessage {
    header: libc::cmsghdr,
    fd: libc::c_int,
    _pad: libc::c_int,
}

/// `CMSG_LEN(sizeof(int))`: the header and one descriptor, without the padding behind it.
const FD_MESSAGE_LEN: usize = std::mem::offset_of!(FdMessage, fd) + size_of::<libc::c_int>();
const _: () = assert!(std::mem::offset_of!(FdMessage, fd) % align_of::<usize>() == 0);

impl FdMessage {
    fn new(fd: libc::c_int) -> Self {
        let header = libc::cmsghdr {
            cmsg_len: FD_MESSAGE_LEN as _,
            cmsg_level: libc::SOL_SOCKET,
            cmsg_type: libc::SCM_RIGHTS,
        };
        Self { header, fd, _pad: 0 }
    }
}

/// Sends `bytes` and, with the first of them, one descriptor (SCM_RIGHTS, unix(7)); returns the bytes taken.
///
/// # Errors
/// [`OsError`] of sendmsg; [`OsError::would_block`] where the socket's buffer is full (nothing was sent then).
pub fn send_with_fd(socket: BorrowedFd<'_>, bytes: &[u8], fd: BorrowedFd<'_>) -> OsResult<usize> {
    let ranges = [RawRange::new(bytes.as_ptr().cast_mut(), bytes.len())];
    let mut control = FdMessage::new(fd.as_raw_fd());
    let mut message = message(&ranges);
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<FdMessage>() as _;
    // SAFETY: all pointers in the message live through the call; `bytes` is only read.
    let n = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    usize::try_from(n).map_err(|_| OsError::last("sendmsg", "SCM_RIGHTS"))
}

/// Reads bytes and at most one descriptor that came with them; further ones are closed by the kernel. So is the first
/// where this process has no place left for it (unix(7)).
///
/// # Errors
/// [`OsError`] of recvmsg; [`OsError::would_block`] where there is nothing yet.
pub fn recv_with_fd(socket: BorrowedFd<'_>, out: &mut [u8]) -> OsResult<(usize, Option<OwnedFd>)> {
    let ranges = [RawRange::new(out.as_mut_ptr(), out.len())];
    let mut control = FdMessage::new(-1);
    let mut message = message(&ranges);
    message.msg_control = (&raw mut control).cast();
    // Exactly one: the kernel fills the padding with a second descriptor where there is room for it.
    message.msg_controllen = FD_MESSAGE_LEN as _;
    // SAFETY: all pointers in the message live through the call; `out` is exclusively ours.
    let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let n = usize::try_from(n).map_err(|_| OsError::last("recvmsg", "socket"))?;
    let came = message.msg_controllen >= FD_MESSAGE_LEN as _
        && (control.header.cmsg_level, control.header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS)
        && control.fd >= 0;
    // SAFETY: the kernel wrote this descriptor in recvmsg and made it ours.
    Ok((n, came.then(|| unsafe { OwnedFd::from_raw_fd(control.fd) })))
}

/// The size in bytes that the kernel gives a socket to send (`SO_SNDBUF`) and receive (`SO_RCVBUF`) into is
/// raised to `bytes` as far as the system's limits allow (socket(7)).
///
/// # Errors
/// [`OsError`] of setsockopt.
pub fn set_buffers(socket: BorrowedFd<'_>, bytes: u32) -> OsResult<()> {
    for (name, what) in [(libc::SO_SNDBUF, "SO_SNDBUF"), (libc::SO_RCVBUF, "SO_RCVBUF")] {
        set_int(socket, (libc::SOL_SOCKET, name), what, bytes)?;
    }
    Ok(())
}

/// The socket is readable once so many bytes wait, or it has ended, or its buffer is full (`SO_RCVLOWAT`, socket(7)).
/// The kernel grows the buffer to hold them where it may. At most half of the largest buffer counts; 0 means 1.
///
/// # Errors
/// [`OsError`] of setsockopt.
pub fn set_low_water(socket: BorrowedFd<'_>, bytes: u32) -> OsResult<()> {
    set_int(socket, (libc::SOL_SOCKET, libc::SO_RCVLOWAT), "SO_RCVLOWAT", bytes)
}

fn set_int(
    socket: BorrowedFd<'_>,
    (level, name): (libc::c_int, libc::c_int),
    what: &'static str,
    value: u32,
) -> OsResult<()> {
    let value = libc::c_int::try_from(value).unwrap_or(libc::c_int::MAX);
    let len = socklen(size_of::<libc::c_int>());
    // SAFETY: buffer and length describe `value`.
    let rc = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    if rc == 0 { Ok(()) } else { Err(OsError::last("setsockopt", what)) }
}

#[expect(clippy::expect_used, reason = "lengths of fixed structs")]
fn socklen(len: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(len).expect("a struct is smaller than 4 GiB")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::memfd::{Mapping, Memfd, MemfdOptions};

    #[test]
    fn a_descriptor_travels_with_its_bytes() {
        let (a, b) = UnixStream::pair().unwrap();
        let memfd = Memfd::create(&MemfdOptions::new("passed", 4096)).unwrap();
        assert_eq!(send_with_fd(a.as_fd(), b"here", memfd.file().as_fd()).unwrap(), 4);
        let mut out = [0; 16];
        let (n, fd) = recv_with_fd(b.as_fd(), &mut out).unwrap();
        assert_eq!(&out[..n], b"here");
        Mapping::of(&fd.unwrap(), 4096).unwrap();
        assert_eq!(send_plain(&a, b"no fd"), 5);
        let (n, fd) = recv_with_fd(b.as_fd(), &mut out).unwrap();
        assert_eq!((&out[..n], fd.is_none()), (&b"no fd"[..], true));
    }

    #[test]
    fn a_socket_below_its_low_water_is_not_readable() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut a = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let b = listener.accept().unwrap().0;
        let epoll = crate::poll::Epoll::new().unwrap();
        set_low_water(b.as_fd(), 3).unwrap();
        epoll.add(b.as_fd(), 1, true, false).unwrap();
        a.write_all(&[1, 2]).unwrap();
        let mut ready = Vec::new();
        epoll.wait(Some(std::time::Duration::from_millis(20)), &mut ready).unwrap();
        assert_eq!(ready, []);
        set_low_water(b.as_fd(), 2).unwrap();
        epoll.wait(None, &mut ready).unwrap();
        assert!(ready[0].readable);
    }

    fn send_plain(socket: &UnixStream, bytes: &[u8]) -> usize {
        let range = RawRange::new(bytes.as_ptr().cast_mut(), bytes.len());
        // SAFETY: `bytes` lives through the call and is only read.
        unsafe { write_ranges(socket.as_fd(), &[range]) }.unwrap()
    }

    #[test]
    fn the_kernel_says_who_is_at_the_other_end() {
        let (a, _b) = UnixStream::pair().unwrap();
        let cred = peer_credentials(a.as_fd()).unwrap();
        assert_eq!(cred.pid, i32::try_from(std::process::id()).unwrap());
    }

    #[test]
    fn writing_to_a_closed_peer_is_an_error_not_a_signal() {
        let (a, b) = UnixStream::pair().unwrap();
        drop(b);
        let byte = [1_u8];
        let range = RawRange::new(byte.as_ptr().cast_mut(), 1);
        // SAFETY: `byte` lives through the call.
        let error = unsafe { write_ranges(a.as_fd(), &[range]) }.unwrap_err();
        assert_eq!(error.errno, libc::EPIPE);
    }
}
