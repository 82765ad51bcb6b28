package server

import (
	"compress/gzip"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"
)

const (
	// slowest is the rate, in bytes a second, below which a reader is cut off in
	// the end, and stall how long it may stand still: who reads faster again gets
	// as much time back.
	slowest = 16 << 10
	stall   = 30 * time.Second
	// sendPiece is how much is handed to the transport in one write.
	sendPiece = 64 << 10
	// sendChunkSize is how much is collected before it is sent.
	sendChunkSize = 32 << 10
)

// sender sends a stream to a client, and cuts off who reads too slowly: a reader
// that holds its gateway's memory for nothing, or facts that grow old. What has
// been sent is cleared.
type sender struct {
	w      http.ResponseWriter
	rc     *http.ResponseController
	packer *gzip.Writer  // nil: sent as it is
	packed []byte        // by packer, to be sent
	left   time.Duration // of what a reader may stand still
	most   time.Duration
	broken bool // a write failed: there may be no other
}

// newSender begins the answer. packed: it is compressed.
func newSender(w http.ResponseWriter, packed bool) *sender {
	s := &sender{w: w, rc: http.NewResponseController(w), left: stall, most: stall}
	if packed {
		// Compression on the way, not the smallest result, is what counts here.
		s.packer, _ = gzip.NewWriterLevel(packing{s}, gzip.BestSpeed)
		s.packed = make([]byte, 0, 2*sendPiece) // the packer's writes are never longer than a piece
	}
	return s
}

// packing takes what the packer makes.
type packing struct{ *sender }

func (p packing) Write(b []byte) (int, error) {
	p.packed = append(p.packed, b...)
	if len(p.packed) < sendChunkSize {
		return len(b), nil
	}
	return len(b), p.drain()
}

// drain sends what was packed.
func (s *sender) drain() error {
	err := s.pass(s.packed)
	s.packed = s.packed[:0]
	return err
}

// send hands b to the transport, and clears it. Nothing is kept back to be
// packed better: what may leave now may not do so later.
func (s *sender) send(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if s.packer == nil {
		return s.pass(b)
	}
	_, err := s.packer.Write(b)
	clear(b)
	if err == nil {
		err = s.packer.Flush()
	}
	if err == nil {
		s.pad()
		err = s.drain()
	}
	return err
}

// emptyBlock is a block of deflate that holds nothing (RFC 1951, 3.2.4), as it
// may stand where Flush ends.
var emptyBlock = []byte{0, 0, 0, 0xff, 0xff}

// pad fills what is packed up to a whole packStep, or to few bytes more: see
// there for what lengths would tell.
func (s *sender) pad() {
	for over := len(s.packed) % packStep; over > 0 && over < packStep; over += len(emptyBlock) {
		s.packed = append(s.packed, emptyBlock...)
	}
}

// flush has all that was sent leave.
func (s *sender) flush() error {
	return s.timed(0, func() error { return s.rc.Flush() })
}

// close ends the answer.
func (s *sender) close() error {
	if s.packer != nil {
		if err := s.packer.Close(); err != nil {
			return err
		}
		if err := s.drain(); err != nil {
			return err
		}
	}
	return s.timed(0, func() error { return s.rc.Flush() })
}

// pass hands b to the transport, and clears it once that is done with it. After
// an error it may not be: over HTTP/2 it may still be sending b.
func (s *sender) pass(b []byte) error {
	for rest := b; len(rest) > 0; {
		piece := rest[:min(len(rest), sendPiece)]
		rest = rest[len(piece):]
		if err := s.timed(len(piece), func() error { _, err := s.w.Write(piece); return err }); err != nil {
			return err
		}
	}
	clear(b)
	return nil
}

// timed writes n bytes within the time that is left.
func (s *sender) timed(n int, write func() error) error {
	if s.broken {
		return io.ErrClosedPipe
	}
	earned := time.Duration(n) * time.Second / slowest
	began := time.Now()
	err := s.rc.SetWriteDeadline(began.Add(s.left + earned))
	if err == nil {
		err = write()
	}
	s.left = min(s.left-time.Since(began)+earned, s.most)
	if err == nil && s.left <= 0 {
		err = errSlow
	}
	s.broken = err != nil
	return err
}

// scrub clears what the sender still holds of what was sent.
func (s *sender) scrub() {
	if s.broken {
		return // the transport may be reading it
	}
	clear(s.packed[:cap(s.packed)])
	if s.packer == nil {
		return
	}
	wipePacker(s.packer)
}

// acceptsGzip says whether a client takes gzip (RFC 9110, 12.5.3).
func acceptsGzip(h http.Header) bool {
	named, any := -1.0, 0.0
	for part := range strings.SplitSeq(strings.Join(h.Values("Accept-Encoding"), ","), ",") {
		// A coding and its weight look like a disposition with a parameter.
		coding, params, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		q, ok := weight(params)
		switch {
		case !ok:
		case coding == "gzip" || coding == "x-gzip":
			named = max(named, q)
		case coding == "*":
			any = q
		}
	}
	if named >= 0 {
		return named > 0
	}
	return any > 0
}
