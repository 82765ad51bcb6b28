// Package authn finds out who calls. It is the only maker of a Caller, and
// there is one way to get one:
//
//	raw, err := authn.Bearer(r.Header)                // RFC 6750, header only
//	leaf, err := authn.LeafThumbprint(r.TLS)          // TLS client certificate
//	token, err := verifier.Verify(ctx, raw, leaf)     // signature, claims, binding
//	record := ...                                     // sealed record of token.Client(), verified
//	caller, err := token.Authenticate(record, authn.ScopeReadings, now)
//
// A token speaks of a supplier, its client itself, or of an employee of the
// grid operator on one errand (RFC 9396): Caller.Employee. There is nothing
// between the two. Employees sign in elsewhere; Identities verifies their ID
// tokens for the cryptoserver that signs their access tokens.
//
// A process that is not itself the TLS server of the supplier (the
// cryptoserver) uses VerifyDetached in place of Verify: the token's own
// binding is then checked against the sealed record only.
//
// Tokens are JWT access tokens (RFC 9068), bound to the client's certificate
// (RFC 8705), signed ES256, PS256 or EdDSA by a key of a configured issuer.
// Which algorithm verifies a token follows from the key, never from the token.
// What is not understood is refused: duplicate JSON members, base64 with
// spare bits, line ends or padding, critical headers, keys inside the token.
//
// Every refusal looks the same to the caller (Challenge); Reason is for logs.
//
// ECDSA allows two signatures, (r, s) and (r, n-s), wherever it allows one, so
// the bytes of a token are no identifier: ID, from its jti, is.
package authn
