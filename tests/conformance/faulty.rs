//! Relays with one fault each: a suite is trusted once it has failed.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::plane::{Plane, Served};
use lemonade_tests::setup::Setup;
use lemonade_tests::socket;

use crate::{half_close, reset, slow_reader};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    LosesAByte,
    DoublesAByte,
    SwapsTwoBytes,
    KeepsFin,
    SendsFinEarly,
    TurnsResetIntoFin,
    TakesEverything,
}

impl Plane for Fault {
    fn name(&self) -> &'static str {
        "faulty"
    }

    fn balances(&self) -> bool {
        true
    }

    fn start(&self, setup: &Setup) -> Box<dyn Served> {
        let (listener, fault) = (socket::listener(), *self);
        let address = listener.local_addr().expect("a bound socket");
        let backend = setup.pools[0].backends[0].address;
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let backend = TcpStream::connect(backend).expect("the backend accepts");
                for (from, to) in [(&client, &backend), (&backend, &client)] {
                    let from = from.try_clone().expect("a second descriptor");
                    let to = to.try_clone().expect("a second descriptor");
                    std::thread::spawn(move || relay(fault, from, to));
                }
            }
        });
        Box::new(Faulty(address))
    }
}

struct Faulty(SocketAddr);

impl Served for Faulty {
    fn address(&self) -> SocketAddr {
        self.0
    }

    fn process(&self) -> Option<&Lemonade> {
        None
    }
}

fn relay(fault: Fault, mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    let mut kept = Vec::new();
    let mut at = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) if fault == Fault::KeepsFin => return,
            Ok(0) => break,
            Ok(n) => {
                let chunk = &mut buffer[..n];
                let here = (at..at + n).contains(&123_456) && n > 1;
                at += n;
                let written = match fault {
                    Fault::LosesAByte if here => to.write_all(&chunk[1..]),
                    Fault::DoublesAByte if here => {
                        to.write_all(&chunk[..1]).and_then(|()| to.write_all(chunk))
                    }
                    Fault::SwapsTwoBytes if here => {
                        chunk.swap(0, 1);
                        to.write_all(chunk)
                    }
                    Fault::SendsFinEarly if here => {
                        let _ = to.shutdown(Shutdown::Write);
                        Ok(())
                    }
                    Fault::TakesEverything => {
                        kept.extend_from_slice(chunk);
                        Ok(())
                    }
                    _ => to.write_all(chunk),
                };
                if written.is_err() {
                    break;
                }
            }
            Err(_) if fault == Fault::TurnsResetIntoFin => break,
            Err(_) => {
                socket::reset(to);
                return;
            }
        }
    }
    let _ = to.write_all(&kept);
    let _ = to.shutdown(Shutdown::Write);
}

macro_rules! noticed {
    ($($name:ident: $fault:ident in $module:ident :: $case:ident;)*) => {
        $(
            #[test]
            #[should_panic]
            fn $name() {
                $module::$case(&Fault::$fault);
            }
        )*
    };
}

noticed! {
    a_lost_byte_is_noticed: LosesAByte in half_close::client_closes_first_behind_data_and_backend_is_silent;
    a_doubled_byte_is_noticed: DoublesAByte in half_close::client_closes_first_behind_data_and_backend_is_silent;
    a_swapped_byte_is_noticed: SwapsTwoBytes in half_close::backend_closes_first_behind_data_and_client_is_silent;
    an_early_fin_is_noticed: SendsFinEarly in half_close::backend_closes_first_behind_data_and_client_is_silent;
    a_kept_fin_is_noticed: KeepsFin in half_close::client_closes_first_without_a_byte_and_backend_goes_on;
    a_reset_turned_into_fin_is_noticed: TurnsResetIntoFin in reset::client_resets_before_the_first_byte;
    unbounded_buffering_is_noticed: TakesEverything in slow_reader::a_stopped_reader_presses_back;
}
