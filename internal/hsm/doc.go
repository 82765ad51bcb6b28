// Package hsm serves the roles of cryptoserver/token from PKCS#11 tokens: one
// module, one process, tokens for up to five roles (open, seal, mint, rotate,
// sign). It also holds the key ceremony that makes and clones the keys.
//
// # What stands where
//
// Key-encryption keys (KEK), MAC keys and signing keys are token objects that
// cannot be extracted, changed or copied. A data key exists only as a session
// object, unwrapped with a template that the KEK itself enforces: sensitive,
// not extractable, AES-GCM in one direction only, never a token object, not
// modifiable, not copyable. On a rotate token it is of no use at all, and
// extractable by trusted keys only, of which its user cannot make one. Every
// KEK is attacked before the first use (see prove); a KEK that gives way stops
// the process from serving.
//
// Data keys carry CKA_PRIVATE=false. Inside one process it makes no
// difference who may use them: session objects are invisible to every other
// process, and all sessions of this one share one login. In exchange SoftHSM
// does not decrypt the key anew at each use, a third of the cost of a
// decryption. They die with their session, which outlives no login.
//
// # Concurrency
//
// Each token has a connection, whose holder session makes the data keys and is
// used by one at a time; workers with sessions of their own, which run whole
// batches from a bounded queue; and a keeper, which watches them. A batch in
// a full queue is token.ErrBusy at once.
//
// A module call cannot be cancelled. A caller returns at its deadline, and what
// the call would have written stays in buffers of the job, which the worker
// clears. A call of more than the call timeout is given up: its caller is
// turned away, another worker starts with a canary, and the session, the
// connection and the holder if it held it are never touched again. Nothing but
// the end of the process ends such a call, so at a limit Stuck says that the
// process should end.
//
// # Several tokens of a role
//
// A role may have several tokens with the same keys, seal and sign excepted,
// whose signing keys are a server's own (see group). A batch goes to one of
// them, by lot, weighted by what each has to do and how fast it was of late; a
// token that cannot serve sends it on to the next within the caller's time.
// Only ErrUnavailable does: what a token says of the data stands, but for an
// epoch that one of them lacks for the time being. At start the tokens must
// hold the KEKs of the same epochs. That these are the same KEKs the probe shows
// where they unwrap, and for mint tokens a key minted by each that a seal or
// open token unwraps; MAC keys show it by a known message, at every opening.
//
// # Forgetting
//
// Forget begins a new generation of unwrapped keys. The cache of every
// connection that batches are given is emptied, by the holder; a batch that
// came before may use its keys to its end, and leaves none behind. A connection
// that was given up is given to no batch again, and its keys die with it when
// its last batch is over. If that batch hangs, they live, of no use to
// anybody, until the process ends.
//
// # Modules that keep memory
//
// SoftHSM keeps something of every session object until C_Finalize. Where that
// is configured (Config.RenewAfter), all tokens of the process rest after so
// many, one after another; with the last the module ends, and all are opened
// anew (see renewer). Batches wait, and none fails for it. While a call is
// stuck, or a token is being opened, the module cannot end; it is tried again.
//
// # Errors
//
// What an answer of the module means is said in errors.go, and what comes of
// it, function by function, in docs/HSM-FAULTS.md, which a test keeps true.
// Answers that may mean bad data (GENERAL_ERROR and its like) are settled by
// a canary, a known vector under the probe key on the same token: if it comes
// out, what failed is done once more, and what fails again is damaged; if not,
// the token is down. A lost session is replaced and the batch repeated once.
// Anything else takes the token down (see machine); it comes back, after
// growing, jittered pauses, through the same start-up with the same attacks. A
// PIN that may have been counted as wrong is never presented again: the token
// would lock itself.
//
// # What a PIN can still do
//
// Whoever holds a token's PIN can use its keys as the role can. For the seal
// token that includes reading: AES-GCM is a stream cipher, and encrypting
// zeros under a chosen IV gives the key stream of any ciphertext with that
// IV. This package never lets a caller choose the IV, which does not bind whoever
// holds the PIN. An HSM that makes the IV itself would, but is not served yet:
// the known vectors need a fixed one.
package hsm
