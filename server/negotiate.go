package server

import (
	"mime"
	"strconv"
	"strings"
)

// The media types of an access log.
const (
	mediaJSON = "application/json"
	mediaHTML = "text/html"
	mediaCSV  = "text/csv"
)

// negotiate chooses the media type of an access log by the Accept header
// (RFC 9110, 12.5.1): the one its caller likes best, JSON before HTML before
// CSV among equals, and "" when it likes none. What is not understood in the
// header counts for nothing.
func negotiate(accept []string) string {
	all := strings.Join(accept, ",")
	if strings.TrimSpace(all) == "" {
		return mediaJSON
	}
	best, quality := "", 0.0
	for _, offer := range []string{mediaJSON, mediaHTML, mediaCSV} {
		// Of the ranges an offer is in, the narrowest counts.
		q, narrow := 0.0, 0
		for part := range strings.SplitSeq(all, ",") {
			media, params, err := mime.ParseMediaType(part)
			if err != nil {
				continue
			}
			n := 0
			switch group, _, _ := strings.Cut(offer, "/"); media {
			case offer:
				n = 3
			case group + "/*":
				n = 2
			case "*/*":
				n = 1
			}
			if n <= narrow {
				continue
			}
			if w, ok := weight(params); ok {
				q, narrow = w, n
			}
		}
		if q > quality {
			best, quality = offer, q
		}
	}
	return best
}

// weight is the q of a media range; 1 when there is none.
func weight(params map[string]string) (float64, bool) {
	s, said := params["q"]
	if !said {
		return 1, true
	}
	q, err := strconv.ParseFloat(s, 64)
	if err != nil || len(s) > 5 || !(q >= 0 && q <= 1) || strings.ContainsAny(s, "+-eExX_pP") {
		return 0, false
	}
	return q, true
}
