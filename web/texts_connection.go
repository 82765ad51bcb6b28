package web

var connectionTexts = texts{}
