package web

var healthTexts = texts{}
