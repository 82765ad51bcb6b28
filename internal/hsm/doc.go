// Package hsm serves the roles of cryptoserver/token from PKCS#11 tokens: one
// module, one process, up to four tokens (open, seal, mint, sign). It also
// holds the key ceremony that makes and clones the keys.
//
// # What stands where
//
// Key-encryption keys (KEK), MAC keys and signing keys are token objects that
// cannot be extracted, changed or copied. A data key exists only as a session
// object, unwrapped with a template that the KEK itself enforces: sensitive,
// not extractable, AES-GCM in one direction only, never a token object, not
// modifiable, not copyable. Every KEK of the open, seal and mint tokens is
// attacked before the first use (see prove); a KEK that gives way stops the
// process from serving.
//
// Data keys carry CKA_PRIVATE=false. Inside one process it makes no
// difference who may use them: session objects are invisible to every other
// process, and all sessions of this one share one login. In exchange SoftHSM
// does not decrypt the key anew at each use, a third of the cost of a
// decryption. They die with their session, which outlives no login.
//
// # Concurrency and errors
//
// Each token has one executor: a goroutine with its own sessions that runs
// whole batches from a bounded queue. Nobody else touches these sessions. A
// module call cannot be cancelled; a caller returns at its deadline, and what
// the call would have written stays in buffers of the executor, which clears
// them. While a call is stuck the token counts as unavailable; when it does not come
// back at all, Stuck says so and the process should end.
//
// Answers that may mean bad data (GENERAL_ERROR and its like) are settled by
// a canary, a known vector under the probe key on the same token: if it works
// the input is bad, if not the token is down. A lost session is replaced and
// the batch repeated once. Anything else takes the token down; the executor
// then tries to come back, with growing, jittered pauses, through the same
// start-up with the same attacks. A refused PIN is never tried again: the
// token would lock itself.
//
// # What a PIN can still do
//
// Whoever holds a token's PIN can use its keys as the role can. For the seal
// token that includes reading: AES-GCM is a stream cipher, and encrypting
// zeros under a chosen IV gives the key stream of any ciphertext with that
// IV. This package never lets a caller choose the IV, but only an HSM that
// makes the IV itself takes the possibility away from the PIN.
package hsm
