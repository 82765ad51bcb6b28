package hsm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// probe is a throw-away data key of one KEK epoch, wrapped as every data key
// is, with one known GCM vector under it. It protects nothing and is public.
// The start-up attacks need a blob that unwraps; the canary needs a vector
// that comes out.
type probe struct {
	epoch      uint32
	wrapped    [wrappedSize]byte
	iv         [ivSize]byte
	ciphertext [len(probePlaintext) + tagSize]byte
}

const (
	probePlaintext = "kluis probe: this opens or the token is broken."
	probeAAD       = "kluis/probe"

	probeMagic = "KPRB\x01"
	probeSize  = len(probeMagic) + 4 + wrappedSize + ivSize + len(probePlaintext) + tagSize
)

var errProbeFile = errors.New("not a probe key file of Kluis; it is written by cryptoserver keys create and import")

func (p probe) append(dst []byte) []byte {
	dst = append(dst, probeMagic...)
	dst = binary.BigEndian.AppendUint32(dst, p.epoch)
	dst = append(dst, p.wrapped[:]...)
	dst = append(dst, p.iv[:]...)
	return append(dst, p.ciphertext[:]...)
}

// parseProbes reads a probe file: one record per epoch, ascending.
func parseProbes(b []byte) ([]probe, error) {
	if len(b) == 0 || len(b)%probeSize != 0 {
		return nil, fmt.Errorf("%w: %d bytes", errProbeFile, len(b))
	}
	var probes []probe
	for ; len(b) > 0; b = b[probeSize:] {
		rest, ok := bytes.CutPrefix(b[:probeSize], []byte(probeMagic))
		if !ok {
			return nil, errProbeFile
		}
		var p probe
		p.epoch = binary.BigEndian.Uint32(rest)
		rest = rest[4:]
		rest = rest[copy(p.wrapped[:], rest):]
		rest = rest[copy(p.iv[:], rest):]
		copy(p.ciphertext[:], rest)
		if p.epoch == 0 || len(probes) > 0 && probes[len(probes)-1].epoch >= p.epoch {
			return nil, fmt.Errorf("%w: epochs are not ascending", errProbeFile)
		}
		probes = append(probes, p)
	}
	return probes, nil
}
