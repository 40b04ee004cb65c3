use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

#[tokio::test]
async fn a_refused_connect_tells_so() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = connect(connector(free, None).unwrap(), free).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(fault(&error), Fault::Refused);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn only_the_first_acknowledgement_waits_for_data() {
    use std::os::fd::AsRawFd;

    let quick = |socket: &dyn AsRawFd| {
        let (mut value, mut length): (libc::c_int, _) = (0, size_of::<libc::c_int>() as libc::socklen_t);
        // SAFETY: the option is one int, and `value` has room for it.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_QUICKACK,
                (&raw mut value).cast(),
                &raw mut length,
            )
        };
        assert_eq!(result, 0);
        value
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let socket = connector(target, None).unwrap();
    acknowledge_with_data(&socket);
    assert_eq!(quick(&socket), 0);
    let mut near = connect(socket, target).await.unwrap();
    assert_eq!(quick(&near), 1, "acknowledgements after the handshake would be late");
    near.write_all(b"abc").await.unwrap();
    let (mut far, _) = listener.accept().await.unwrap();
    let mut seen = [0; 3];
    far.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"abc");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn bytes_that_wait_are_seen_before_they_are_read() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let mut near = connect(connector(target, None).unwrap(), target).await.unwrap();
    let (far, _) = listener.accept().await.unwrap();
    assert!(!has_bytes(&far));
    near.write_all(b"abc").await.unwrap();
    far.readable().await.unwrap();
    assert!(has_bytes(&far));
    drop(near);
}
