// Package envelope fixes the sealed formats around a block: the ciphertext,
// its additional authenticated data, the data key record, the receipt and the
// seal event, and the chain that the last two share in a server's journal.
// Each has a domain tag, a format version and golden vectors.
//
// It also names the rows that travel between the database and a cryptoserver,
// so that whoever fetches them and whoever sends them agree without knowing
// each other.
package envelope

import "errors"

// ErrFormat is wrapped when bytes are not of the format.
var ErrFormat = errors.New("not a sealed format of Kluis")
