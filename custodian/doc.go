// Package custodian is the work of the operator's key custodian: the control
// feed and its heartbeat, the rotation of KEKs and of data keys, erasure, and
// the destruction of an epoch. It links no PKCS#11 and sees no key in clear: it
// moves wrapped keys and ciphertext between the database and the cryptoservers.
//
// What the database says the feed is counts only as far as the custodian's own
// copy of the feed agrees; the copy lies in a file outside of the database and
// of its backups. A database that is behind the copy was put back to an older
// state: no heartbeat is signed until what was erased is erased again (Reapply).
//
// An entry is written to the database first, then to the copy, then told to the
// cryptoservers. So the copy is never ahead of a database that nobody put back,
// and whatever ends a process in between is made up for by the next: every
// method may be repeated, and goes on from where it was.
//
// Custodians may work side by side, as the daemon (Run) and a command do; on one
// host they share the copy.
package custodian
