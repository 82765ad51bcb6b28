package server

import (
	"encoding/base64"
	"encoding/binary"
	"time"
)

const cursorVersion = 1

// A cursor of an access log says after which record it goes on. It holds no
// right: whose log it is, and what of it is shown, the request says
// again, and one made up says no more than another place in the same log.
//
// Form: version 1, time as microseconds since 1970 (8 bytes big endian),
// interaction id; base64url without padding.
func encodeLogCursor(p LogPlace) string {
	b := binary.BigEndian.AppendUint64([]byte{cursorVersion}, uint64(p.At.UnixMicro()))
	return base64.RawURLEncoding.EncodeToString(append(b, p.Interaction[:]...))
}

func decodeLogCursor(s string) (LogPlace, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != 25 || b[0] != cursorVersion {
		return LogPlace{}, errCursor
	}
	p := LogPlace{At: time.UnixMicro(int64(binary.BigEndian.Uint64(b[1:]))).UTC(), Interaction: [16]byte(b[9:])}
	if p.At.Unix() < 0 || p.At.After(forever) || encodeLogCursor(p) != s {
		return LogPlace{}, errCursor
	}
	return p, nil
}
