package cryptoserver

import (
	"crypto/sha256"
	"sync"

	"kluis/cryptoserver/envelope"
)

// receipts is the hash chain of one boot. A receipt is made before the answer
// it belongs to leaves, so one that is missing from the access log shows as a
// gap in the sequence.
type receipts struct {
	serverID string
	bootID   [16]byte

	mu       sync.Mutex
	sequence uint64
	previous [32]byte
}

// issue completes r with server, boot, sequence and previous hash, and
// encodes it.
func (c *receipts) issue(r envelope.Receipt) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sequence++
	r.ServerID, r.BootID, r.Sequence, r.Previous = c.serverID, c.bootID, c.sequence, c.previous
	b := r.Encode()
	c.previous = sha256.Sum256(b)
	return b
}

func (c *receipts) issued() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sequence
}
