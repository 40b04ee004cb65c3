//! Interfaces of this network namespace that programs can be attached to.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::io;

/// `ARPHRD_ETHER`
const ETHERNET: u16 = 1;

/// Names of the interfaces that are up, have an address of IPv4 or IPv6 and carry Ethernet frames; loopback is none.
///
/// # Errors
/// As getifaddrs(3).
pub(super) fn ethernet() -> io::Result<BTreeSet<String>> {
    let mut first = std::ptr::null_mut();
    // SAFETY: the list is freed below, once.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let (mut links, mut addressed) = (BTreeSet::new(), BTreeSet::new());
    let mut next = first;
    while !next.is_null() {
        // SAFETY: an element of the list, whose name ends with a zero byte.
        let (one, name) = unsafe { (&*next, CStr::from_ptr((*next).ifa_name)) };
        next = one.ifa_next;
        let up = one.ifa_flags & libc::IFF_UP as u32 != 0;
        let loopback = one.ifa_flags & libc::IFF_LOOPBACK as u32 != 0;
        let Ok(name) = name.to_str() else { continue };
        if one.ifa_addr.is_null() || !up || loopback {
            continue;
        }
        // SAFETY: an address has its family first.
        match i32::from(unsafe { (*one.ifa_addr).sa_family }) {
            libc::AF_INET | libc::AF_INET6 => {
                addressed.insert(name.to_owned());
            }
            libc::AF_PACKET => {
                // SAFETY: an address of this family is one of a link.
                let kind = unsafe { (*one.ifa_addr.cast::<libc::sockaddr_ll>()).sll_hatype };
                if kind == ETHERNET {
                    links.insert(name.to_owned());
                }
            }
            _ => {}
        }
    }
    // SAFETY: the list that was made above.
    unsafe { libc::freeifaddrs(first) };
    Ok(links.intersection(&addressed).cloned().collect())
}
