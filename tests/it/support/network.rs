//! A network between the relay and its Postgres that can lose what is sent.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Forwards to a server over TCP, with a delay, until the test makes it silent. From then on it drops what is sent over
/// the connections that are open, and tells neither end. New connections work.
pub struct Network {
    pub port: u16,
    connections: Arc<Mutex<Vec<Arc<Carried>>>>,
}

/// One connection over it.
struct Carried {
    /// The port that the server sees.
    port: u16,
    /// Whether what the client says is dropped, and whether what the server says is.
    silent: [AtomicBool; 2],
}

impl Network {
    /// Forwards to this port of loopback; what is sent takes `delay` in each direction.
    pub fn to(server: u16, delay: Duration) -> Network {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections: Arc<Mutex<Vec<Arc<Carried>>>> = Arc::default();
        let carried = connections.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                let port = server.local_addr().unwrap().port();
                let connection = Arc::new(Carried { port, silent: Default::default() });
                carried.lock().unwrap().push(connection.clone());
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap(), connection.clone());
                thread::spawn(move || carry(&client, &server, &connection.silent[0], delay));
                thread::spawn(move || carry(&back.0, &back.1, &back.2.silent[1], delay));
            }
        });
        Network { port, connections }
    }

    /// Makes the connections silent that are open now.
    pub fn go_silent(&self) {
        let connections = std::mem::take(&mut *self.connections.lock().unwrap());
        connections
            .iter()
            .flat_map(|connection| &connection.silent)
            .for_each(|silent| silent.store(true, Ordering::Relaxed));
    }

    /// Drops what one end of one connection says: the server's words with `server`, the client's without. `port` is the
    /// port that the server sees the connection come from.
    pub fn silence(&self, port: i32, server: bool) {
        let connections = self.connections.lock().unwrap();
        let connection = connections.iter().find(|connection| i32::from(connection.port) == port);
        connection.unwrap().silent[usize::from(server)].store(true, Ordering::Relaxed);
    }
}

fn carry(mut from: &TcpStream, mut to: &TcpStream, silent: &AtomicBool, delay: Duration) {
    let mut buffer = [0; 16 * 1024];
    // Both ends stay open until the program ends, as in a network that loses packets.
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        thread::sleep(delay);
        if !silent.load(Ordering::Relaxed) && to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    if !silent.load(Ordering::Relaxed) {
        // The other end may be gone, too.
        thread::sleep(delay);
        to.shutdown(Shutdown::Both).ok();
    }
}
