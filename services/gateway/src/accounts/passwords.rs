//! Passwords: argon2id (RFC 9106) on a few threads that give way to all others.
//!
//! A hash costs some 20 MiB and tens of milliseconds, so that a crowd at the door could stop everything else: there are few threads,
//! of low priority, and few places in the queue. One address has an eighth of them at the most, and those who wait take turns by
//! where they come from. In a simulation the hash is made on the spot.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use parking_lot::{Condvar, Mutex};
use tidewall_env::{random, simulation};
use tidewall_messages::accounts::Credential;
use tokio::sync::oneshot;
use unicode_normalization::UnicodeNormalization as _;

use super::Secrets;
use crate::errors::ApiError;

/// Fewest characters of a password (NIST SP 800-63B).
const CHARACTERS_MIN: usize = 8;
/// Most characters.
const CHARACTERS_MAX: usize = 256;
/// Version of the secret that is added.
const PEPPER: u32 = 1;
const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;
/// What a stored credential may cost at most: rows are not trusted with more.
const MEMORY_KIB_MAX: u32 = 1 << 18;
const PASSES_MAX: u32 = 16;
/// How much lower the priority of the threads is.
const NICENESS: i32 = 10;

/// How passwords are hashed, and how many at once.
#[derive(Debug, Clone)]
pub struct HashingOptions {
    /// Memory of a hash, KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Threads.
    pub threads: usize,
    /// Calls that may be on their way to a hash.
    pub places: usize,
    /// Of one address.
    pub places_per_address: usize,
}

impl Default for HashingOptions {
    /// 19 MiB and two passes, as OWASP recommends; a quarter of the cores.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            memory_kib: 19 << 10,
            passes: 2,
            threads: (cores / 4).max(1),
            places: 512,
            places_per_address: 64,
        }
    }
}

impl HashingOptions {
    /// So cheap that tests and simulations can afford them. Never for real passwords.
    pub fn cheap() -> Self {
        Self { memory_kib: 8, passes: 1, threads: 1, places: 64, places_per_address: 32 }
    }
}

/// A password in one spelling. It is not printed.
pub(crate) struct Password(String);

impl Password {
    /// The password as it was typed, whatever keyboard composed it (NFC, as RFC 8265 has it).
    ///
    /// # Errors
    /// What is wrong with a new one.
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        if text.len() > 4 * CHARACTERS_MAX {
            return Err(format!("has more than {CHARACTERS_MAX} characters"));
        }
        let password: String = text.nfc().collect();
        match password.chars().count() {
            CHARACTERS_MIN..=CHARACTERS_MAX => Ok(Self(password)),
            _ => Err(format!("must have {CHARACTERS_MIN} to {CHARACTERS_MAX} characters")),
        }
    }
}

/// Who has one address of an IPv6 network has all of them.
fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            IpAddr::V6(std::net::Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)))
        }
        address => address,
    }
}

type Job = Box<dyn FnOnce(&mut Vec<Block>) + Send>;

#[derive(Default)]
struct Queue {
    /// By where they come from; whoever had a turn goes to the end of `turns`.
    waiting: BTreeMap<Option<IpAddr>, VecDeque<Job>>,
    turns: VecDeque<Option<IpAddr>>,
    places: BTreeMap<Option<IpAddr>, usize>,
    taken: usize,
}

struct Pool {
    queue: Mutex<Queue>,
    came: Condvar,
}

/// Hashes passwords.
pub(crate) struct Passwords {
    options: HashingOptions,
    pool: Arc<Pool>,
    running: OnceLock<()>,
}

/// A place on the way to a hash.
pub(crate) struct Place<'a> {
    passwords: &'a Passwords,
    from: Option<IpAddr>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut queue = self.passwords.pool.queue.lock();
        queue.taken -= 1;
        if let Some(places) = queue.places.get_mut(&self.from) {
            *places -= 1;
            if *places == 0 {
                queue.places.remove(&self.from);
            }
        }
    }
}

impl Passwords {
    pub(crate) fn new(options: HashingOptions) -> Self {
        let pool = Pool { queue: Mutex::default(), came: Condvar::new() };
        Self { options, pool: Arc::new(pool), running: OnceLock::new() }
    }

    /// Whether there is room for a call from an address: asked before anything else is done for it, and promises nothing.
    ///
    /// # Errors
    /// Overloaded, when there are as many calls as there may be.
    pub(crate) fn check_room(&self, from: Option<IpAddr>) -> Result<(), ApiError> {
        self.room(&self.pool.queue.lock(), from.map(site)).map(drop)
    }

    /// How many places an address has, when it may have one more.
    fn room(&self, queue: &Queue, from: Option<IpAddr>) -> Result<usize, ApiError> {
        let own = queue.places.get(&from).copied().unwrap_or(0);
        if queue.taken >= self.options.places || own >= self.options.places_per_address {
            return Err(ApiError::overloaded(
                "as many passwords are being checked as this gateway may check",
            ));
        }
        Ok(own)
    }

    /// A place for a hash for an address. It is not to be held while anything else is waited for.
    ///
    /// # Errors
    /// Overloaded, when there are as many calls as there may be.
    pub(crate) fn place(&self, from: Option<IpAddr>) -> Result<Place<'_>, ApiError> {
        let from = from.map(site);
        let mut queue = self.pool.queue.lock();
        let own = self.room(&queue, from)?;
        queue.taken += 1;
        queue.places.insert(from, own + 1);
        Ok(Place { passwords: self, from })
    }

    /// Gives work to the threads.
    fn give(&self, from: Option<IpAddr>, job: Job) {
        self.running.get_or_init(|| {
            for number in 0..self.options.threads {
                let pool = Arc::clone(&self.pool);
                let thread = std::thread::Builder::new().name(format!("passwords-{number}"));
                if let Err(error) = thread.spawn(move || pool.work()) {
                    tracing::error!(%error, "a thread for passwords cannot be started");
                }
            }
        });
        let mut queue = self.pool.queue.lock();
        let queue = &mut *queue;
        let own = queue.waiting.entry(from).or_default();
        if own.is_empty() {
            queue.turns.push_back(from);
        }
        own.push_back(job);
        self.pool.came.notify_one();
    }
}

impl Pool {
    fn work(&self) {
        // On Linux this is the priority of the thread alone.
        if let Err(error) = rustix::process::nice(NICENESS) {
            tracing::warn!(%error, "a thread for passwords has the priority of all others");
        }
        let mut memory = Vec::new();
        loop {
            let job = self.next();
            job(&mut memory);
        }
    }

    fn next(&self) -> Job {
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.next() {
                return job;
            }
            self.came.wait(&mut queue);
        }
    }
}

impl Queue {
    fn next(&mut self) -> Option<Job> {
        let from = self.turns.pop_front()?;
        let own = self.waiting.get_mut(&from)?;
        let job = own.pop_front();
        if own.is_empty() {
            self.waiting.remove(&from);
        } else {
            self.turns.push_back(from);
        }
        job
    }
}

impl Place<'_> {
    /// How a new password will be checked.
    ///
    /// # Errors
    /// When the thread has ended.
    pub(crate) async fn credential(
        &self,
        secrets: &Secrets,
        password: &Password,
    ) -> Result<Credential, ApiError> {
        let salt: [u8; SALT_BYTES] = random::secret();
        let mut credential = self.passwords.of_nobody(salt);
        credential.hash = self.hash(secrets, password, &credential).await?;
        Ok(credential)
    }

    /// Whether a password is the one of this credential. Without one it takes as long, and is never right.
    ///
    /// # Errors
    /// When the thread has ended, or the credential makes no sense.
    pub(crate) async fn check(
        &self,
        secrets: &Secrets,
        password: &Password,
        credential: Option<&Credential>,
        email: &[u8; 32],
    ) -> Result<bool, ApiError> {
        let nobody = self.passwords.of_nobody(secrets.salt_of_nobody(email));
        let credential = credential.unwrap_or(&nobody);
        let hash = self.hash(secrets, password, credential).await?;
        // Two hashes are compared by their hashes under a key that nobody knows: nothing can be learned from how long that takes.
        let same =
            secrets.fingerprint("credential", &hash) == secrets.fingerprint("credential", &credential.hash);
        Ok(same && hash == credential.hash)
    }

    async fn hash(
        &self,
        secrets: &Secrets,
        password: &Password,
        credential: &Credential,
    ) -> Result<Vec<u8>, ApiError> {
        let work = Work::new(secrets, password, credential)?;
        if simulation::is_active() {
            return work.run(&mut Vec::new());
        }
        let (done, hash) = oneshot::channel();
        let job = move |memory: &mut Vec<Block>| {
            // Whoever asked may have gone.
            if !done.is_closed() {
                let _ = done.send(work.run(memory));
            }
        };
        self.passwords.give(self.from, Box::new(job));
        hash.await.unwrap_or_else(|_| Err(ApiError::internal("the thread that checks passwords has ended")))
    }
}

impl Passwords {
    /// A credential that no password has.
    fn of_nobody(&self, salt: [u8; SALT_BYTES]) -> Credential {
        Credential {
            pepper: PEPPER,
            memory_kib: self.options.memory_kib,
            passes: self.options.passes,
            lanes: 1,
            salt: salt.to_vec(),
            hash: Vec::new(),
        }
    }
}

/// One hash.
struct Work {
    password: String,
    pepper: [u8; 32],
    salt: Vec<u8>,
    params: Params,
}

impl Work {
    fn new(
        secrets: &Secrets,
        Password(password): &Password,
        credential: &Credential,
    ) -> Result<Self, ApiError> {
        let Credential { pepper, memory_kib, passes, lanes, salt, .. } = credential;
        let params = Params::new(*memory_kib, *passes, *lanes, Some(HASH_BYTES));
        let sound = *pepper == PEPPER && *memory_kib <= MEMORY_KIB_MAX && *passes <= PASSES_MAX;
        let params = params.ok().filter(|_| sound).ok_or_else(|| {
            ApiError::internal(
                "the stored credential is of a kind that this build does not know: use a newer gateway",
            )
        })?;
        Ok(Self { password: password.clone(), pepper: *secrets.pepper(), salt: salt.clone(), params })
    }

    fn run(self, memory: &mut Vec<Block>) -> Result<Vec<u8>, ApiError> {
        let failed =
            |error: argon2::Error| ApiError::internal(format!("a password cannot be hashed: {error}"));
        memory.resize(memory.len().max(self.params.block_count()), Block::default());
        let argon2 = Argon2::new_with_secret(&self.pepper, Algorithm::Argon2id, Version::V0x13, self.params)
            .map_err(failed)?;
        let mut hash = vec![0; HASH_BYTES];
        argon2
            .hash_password_into_with_memory(self.password.as_bytes(), &self.salt, &mut hash, memory)
            .map_err(failed)?;
        Ok(hash)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn password(text: &str) -> Password {
        Password::new(text).unwrap()
    }

    #[tokio::test]
    async fn a_password_is_right_in_any_spelling_and_others_are_wrong() {
        let (secrets, passwords) = (Secrets::new(&[1; 32]), Passwords::new(HashingOptions::cheap()));
        let place = passwords.place(None).unwrap();
        let credential = place.credential(&secrets, &password("correct hors\u{e9}")).await.unwrap();
        assert_eq!((credential.salt.len(), credential.hash.len(), credential.memory_kib), (16, 32, 8));
        let check = async |text: &str, credential: Option<&Credential>, secrets: &Secrets| {
            place.check(secrets, &password(text), credential, &[3; 32]).await
        };
        assert!(check("correct hors\u{e9}", Some(&credential), &secrets).await.unwrap());
        assert!(check("correct horse\u{301}", Some(&credential), &secrets).await.unwrap(), "decomposed");
        assert!(!check("correct horse", Some(&credential), &secrets).await.unwrap());
        assert!(!check("correct hors\u{e9}", None, &secrets).await.unwrap(), "of nobody");
        let stolen = Secrets::new(&[2; 32]);
        assert!(
            !check("correct hors\u{e9}", Some(&credential), &stolen).await.unwrap(),
            "the rows alone are not enough"
        );
        let again = place.credential(&secrets, &password("correct hors\u{e9}")).await.unwrap();
        assert_ne!(again.hash, credential.hash, "salted");
        for odd in [
            Credential { pepper: 2, ..credential.clone() },
            Credential { memory_kib: 1 << 30, ..credential.clone() },
            Credential { passes: 1 << 20, ..credential.clone() },
            Credential { lanes: 0, ..credential.clone() },
        ] {
            assert!(check("correct hors\u{e9}", Some(&odd), &secrets).await.is_err());
        }
    }

    #[test]
    fn new_passwords_have_a_shortest_and_a_longest_length() {
        for text in ["", "seven77", &"x".repeat(257), &"x".repeat(100_000)] {
            assert!(Password::new(text).is_err());
        }
        for text in ["eight888", "\u{1F3AB}".repeat(8).as_str(), &"x".repeat(256)] {
            assert!(Password::new(text).is_ok());
        }
    }

    #[test]
    fn places_are_bounded_in_all_and_for_each_address() {
        let options = HashingOptions { places: 5, places_per_address: 3, ..HashingOptions::cheap() };
        let passwords = Passwords::new(options);
        let address = |last: u8| Some(IpAddr::from([127, 0, 0, last]));
        let mut crowd: Vec<_> = (0..3).map(|_| passwords.place(address(1)).unwrap()).collect();
        assert!(passwords.place(address(1)).is_err() && passwords.check_room(address(1)).is_err());
        assert!(passwords.check_room(address(2)).is_ok());
        let others = [passwords.place(address(2)).unwrap(), passwords.place(None).unwrap()];
        assert!(passwords.place(address(3)).is_err());
        drop(crowd.pop());
        assert!(passwords.place(address(1)).is_ok());
        drop((crowd, others));
        let queue = passwords.pool.queue.lock();
        assert!(queue.taken == 0 && queue.places.is_empty());
    }

    #[test]
    fn a_network_is_one_address() {
        let site = |text: &str| site(text.parse().unwrap());
        assert_eq!(site("2001:db8:1:2:3::4"), site("2001:db8:1:2:ffff::"));
        assert_ne!(site("2001:db8:1:2::4"), site("2001:db8:1:3::4"));
        assert_eq!(site("::ffff:192.0.2.1"), site("192.0.2.1"));
        assert_ne!(site("192.0.2.1"), site("192.0.2.2"));
    }

    /// Somebody who asks for a hundred delays somebody else by a turn.
    #[test]
    fn addresses_take_turns() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let job = |name: u8| -> Job {
            let order = Arc::clone(&order);
            Box::new(move |_: &mut Vec<Block>| order.lock().push(name))
        };
        let mut queue = Queue::default();
        let address = |last: u8| Some(IpAddr::from([127, 0, 0, last]));
        for (from, count) in [(1, 100), (2, 2), (3, 1)] {
            queue.turns.push_back(address(from));
            queue.waiting.insert(address(from), (0..count).map(|_| job(from)).collect());
        }
        let mut memory = Vec::new();
        while let Some(job) = queue.next() {
            job(&mut memory);
        }
        assert_eq!(order.lock()[..6], [1, 2, 3, 1, 2, 1]);
        assert_eq!(order.lock().len(), 103);
        assert!(queue.waiting.is_empty());
    }
}
